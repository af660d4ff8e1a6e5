"""Runs any diffusers pipeline, and names its parts."""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from torch import nn

from ldpruner.errors import ProbeError, accepted_names
from ldpruner.pipelines.meta import is_meta, running_on_meta
from ldpruner.pipelines.state import all_parts, known_state

Arguments = Mapping[str, Any]
ORIGINAL_MODULE = "_orig_mod"  # where the wrapper that `torch.compile` returns keeps the module


class StopPipeline(BaseException):
    """Leaves a pipeline early. It is no Exception, so that no pipeline catches it."""


def networks(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    """The networks of a pipeline by component name. A network that `torch.compile` wrapped is unwrapped."""
    parts = {name: getattr(part, ORIGINAL_MODULE, part) for name, part in all_parts(pipeline).items()}
    return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}


def schedulers(pipeline: DiffusionPipeline) -> list[Any]:
    """The schedulers of a pipeline."""
    parts = all_parts(pipeline).values()
    return [part for part in parts if hasattr(part, "set_timesteps") and hasattr(part, "step")]


def accepted_arguments(pipeline: DiffusionPipeline, arguments: Arguments) -> dict[str, Any]:
    """Keeps the arguments that the pipeline's call names."""
    parameters = inspect.signature(type(pipeline).__call__).parameters
    return {name: value for name, value in arguments.items() if name in parameters}


def check_arguments(pipeline: DiffusionPipeline, names: Iterable[str]) -> None:
    """Raises ProbeError for the name of an argument that the pipeline's call does not have."""
    parameters = inspect.signature(type(pipeline).__call__).parameters
    accepted = [name for name in parameters if name not in ("self", "args", "kwargs")]
    for name in names:
        if name not in accepted:
            raise ProbeError(f"{type(pipeline).__name__} takes no argument {name!r}; {accepted_names(name, accepted)}")


def force_eager() -> contextlib.AbstractContextManager[Any]:
    """Runs compiled networks eagerly inside a `with` block: each modification would recompile them."""
    return cast(contextlib.AbstractContextManager[Any], torch.compiler.set_stance("force_eager"))


def run_pipeline(pipeline: DiffusionPipeline, arguments: Arguments, *, seed: int = 0, compiled: bool = False) -> Any:
    """Calls a pipeline without gradients and in a known state; returns None when StopPipeline ends the call.

    The weights may be on the meta device. Compiled networks run eagerly, unless `compiled`. Afterwards the pipeline
    and all random states are as before.
    """
    on_device = running_on_meta if is_meta(pipeline) else contextlib.nullcontext
    with (
        torch.no_grad(),
        known_state(pipeline, seed),
        on_device(pipeline),
        contextlib.nullcontext() if compiled else force_eager(),
    ):
        try:
            return cast(Callable[..., Any], pipeline)(**arguments)
        except BaseException as error:
            pipeline.maybe_free_model_hooks()  # as a pipeline does at the end of its call
            if not isinstance(error, StopPipeline):
                raise
    return None
