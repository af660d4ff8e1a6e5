"""Opening a pipeline where it shall run."""

import contextlib
import os
from pathlib import Path
from typing import Any

import diffusers.utils.logging
import torch
import transformers.utils.logging
from diffusers import DiffusionPipeline

from ldpruner.errors import DeviceError, one_line
from ldpruner.pruning.serialization import load

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


def open_pipeline(
    model: Path | str,
    device: str | None = None,
    dtype: str | None = None,
    *,
    trust_programs: bool = False,
    **components: Any,
) -> DiffusionPipeline:
    """Opens a pipeline on a device, without the libraries' loading bars.

    Args:
        model: a folder, a Hub id, or zoo:NAME.
        device: such as `cpu`, `cuda` or `mps`; None takes a CUDA device if there is one.
        dtype: precision of the weights, such as `float16`; None is float32.
        trust_programs: see `load`.
        components: that take the place of the folder's.

    Raises:
        DeviceError: the device or the precision does not exist here.
        PipelineNotFound: there is no such pipeline.
    """
    if dtype and dtype not in PRECISIONS:
        raise DeviceError(f"dtype {dtype!r} cannot be computed in; choose {', '.join(PRECISIONS)}")
    precision = PRECISIONS[dtype] if dtype else None
    place = device or _default_device()
    try:
        torch.ones(1, device=place).tolist()  # before the weights are read; the meta device has no values
    except (RuntimeError, AssertionError) as error:  # NotImplementedError is a RuntimeError
        raise DeviceError(f"device {place!r} cannot be used: {one_line(error)}; try cpu") from error
    with contextlib.ExitStack() as bars:
        for library in (diffusers.utils.logging, transformers.utils.logging):
            if library.is_progress_bar_enabled():
                library.disable_progress_bar()
                bars.callback(library.enable_progress_bar)
        return load(model, torch_dtype=precision, trust_programs=trust_programs, **components).to(place)


def _default_device() -> str:
    rank = os.environ.get("LOCAL_RANK", "0")  # set by launchers, for each process
    return f"cuda:{rank}" if torch.cuda.is_available() else "cpu"
