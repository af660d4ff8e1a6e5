"""Running a diffusers pipeline and watching it: which network denoises, and how it is called."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from torch import nn

from ldpruner.pipelines.meta import is_meta, running_on_meta

Arguments = Mapping[str, Any]


WRAPPED = "_orig_mod"  # in what `torch.compile` makes of a module, the module


class StopPipeline(BaseException):
    """Leaves a pipeline in the middle. No pipeline catches it, as it is not an Exception."""


def networks(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    """The components of a pipeline that are networks, by name; of those that `torch.compile` wraps, what is inside."""
    parts = {name: getattr(part, WRAPPED, part) for name, part in pipeline.components.items()}
    return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Until it ends, compiled networks run as they were written: each modification would have them compiled anew."""
    return cast(contextlib.AbstractContextManager[Any], torch.compiler.set_stance("force_eager"))


def schedulers(pipeline: DiffusionPipeline) -> list[Any]:
    """The components of a pipeline that make the steps."""
    parts = pipeline.components.values()
    return [part for part in parts if hasattr(part, "set_timesteps") and hasattr(part, "step")]


def accepted_arguments(pipeline: DiffusionPipeline, wanted: Arguments) -> dict[str, Any]:
    """Those of the wanted arguments that the pipeline's call names."""
    known = inspect.signature(type(pipeline).__call__).parameters
    return {name: value for name, value in wanted.items() if name in known}


def run_pipeline(pipeline: DiffusionPipeline, arguments: Arguments, *, compiled: bool = False) -> Any:
    """Calls a pipeline quietly, without gradients; an interruption from inside ends the call with None.

    Args:
        pipeline: which.
        arguments: of its call.
        compiled: whether its networks run as `torch.compile` made them, not as they were written.
    """
    bar = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(disable=True)
    surroundings = running_on_meta if is_meta(pipeline) else contextlib.nullcontext
    try:
        with (
            torch.no_grad(),
            surroundings(pipeline),
            contextlib.nullcontext() if compiled else uncompiled(),
            contextlib.suppress(StopPipeline),
        ):
            return cast(Callable[..., Any], pipeline)(**arguments)
        pipeline.maybe_free_model_hooks()  # what a pipeline does at its end
        return None
    finally:
        pipeline.set_progress_bar_config(**bar)


@contextlib.contextmanager
def stepping(scheduler: Any, step: Callable[..., Any]) -> Iterator[None]:
    """Puts a function in the place of a scheduler's `step` for a while, in its class: a pipeline may copy it."""
    original = type(scheduler)
    step.__signature__ = inspect.signature(original.step)  # type: ignore[attr-defined]
    scheduler.__class__ = type(original.__name__, (original,), {"step": step})
    try:
        yield
    finally:
        scheduler.__class__ = original


@contextlib.contextmanager
def keeping_precision(part: nn.Module) -> Iterator[None]:
    """Restores the precision of a network's weights: some pipelines raise that of an autoencoder while it decodes."""
    before = [(weight, weight.dtype) for weight in part.parameters()]
    try:
        yield
    finally:
        for weight, dtype in before:
            if weight.dtype != dtype:
                weight.data = weight.data.to(dtype)


@contextlib.contextmanager
def overridden(thing: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Puts a function in the place of a method of one object for a while.

    The stand-in keeps the signature: pipelines look at it.
    """
    original, own = getattr(thing, name), name in vars(thing)
    function.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    setattr(thing, name, function)
    try:
        yield
    finally:
        setattr(thing, name, original) if own else delattr(thing, name)
