"""Runs any diffusers pipeline, and names its parts."""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from torch import nn

from ldpruner.pipelines.meta import is_meta, running_on_meta

Arguments = Mapping[str, Any]
ORIGINAL_MODULE = "_orig_mod"  # where the wrapper that `torch.compile` returns keeps the module


class StopPipeline(BaseException):
    """Leaves a pipeline early. It is no Exception, so that no pipeline catches it."""


def networks(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    """The networks of a pipeline by component name. A network that `torch.compile` wrapped is unwrapped."""
    components = {name: getattr(part, ORIGINAL_MODULE, part) for name, part in pipeline.components.items()}
    return {name: part for name, part in components.items() if isinstance(part, nn.Module)}


def schedulers(pipeline: DiffusionPipeline) -> list[Any]:
    """The schedulers of a pipeline."""
    components = pipeline.components.values()
    return [part for part in components if hasattr(part, "set_timesteps") and hasattr(part, "step")]


def accepted_arguments(pipeline: DiffusionPipeline, arguments: Arguments) -> dict[str, Any]:
    """Keeps the arguments that the pipeline's call names."""
    parameters = inspect.signature(type(pipeline).__call__).parameters
    return {name: value for name, value in arguments.items() if name in parameters}


def force_eager() -> contextlib.AbstractContextManager[Any]:
    """Runs compiled networks eagerly inside a `with` block: each modification would recompile them."""
    return cast(contextlib.AbstractContextManager[Any], torch.compiler.set_stance("force_eager"))


def run_pipeline(pipeline: DiffusionPipeline, arguments: Arguments, *, compiled: bool = False) -> Any:
    """Calls a pipeline without gradients and without a progress bar; returns None when StopPipeline ends the call.

    The weights may be on the meta device. Compiled networks run eagerly, unless `compiled`.
    """
    progress_bar = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(disable=True)
    on_device = running_on_meta if is_meta(pipeline) else contextlib.nullcontext
    try:
        with (
            torch.no_grad(),
            on_device(pipeline),
            contextlib.nullcontext() if compiled else force_eager(),
            contextlib.suppress(StopPipeline),
        ):
            return cast(Callable[..., Any], pipeline)(**arguments)
        pipeline.maybe_free_model_hooks()  # as a pipeline does at the end of its call
        return None
    finally:
        pipeline.set_progress_bar_config(**progress_bar)
