"""Running a diffusers pipeline and watching it: which network denoises, and how it is called."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from torch import nn

from ldpruner.errors import DenoiserNotFound, one_line
from ldpruner.weightless import is_weightless, running_weightless

Arguments = Mapping[str, Any]

# What a pipeline is called with to see how it calls its denoiser. Only what it accepts is passed.
# Few steps would be none for an image-to-image pipeline, or too few for a multistep scheduler; only one is run.
FIRST_CALL: Arguments = {"prompt": "", "class_labels": [0], "num_inference_steps": 10, "steps": 10}

WRAPPED = "_orig_mod"  # in what `torch.compile` makes of a module, the module


class Interruption(BaseException):
    """Leaves a pipeline in the middle. No pipeline catches it, as it is not an Exception."""


@dataclass(frozen=True)
class Denoiser:
    """The network that a pipeline calls in every step, and one real call of it.

    Attributes:
        component: its name in the pipeline, such as `unet`.
        module: the network.
        arguments: positional arguments of the recorded call.
        options: keyword arguments of the recorded call.
    """

    component: str
    module: nn.Module
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def rows(self) -> int:
        """Rows of the batch in the recorded call: 2 for one sample under classifier-free guidance."""
        given = [*self.arguments, *self.options.values()]
        return next((len(value) for value in given if _holds_samples(value)), 1)

    def __call__(self) -> Any:
        """Repeats the recorded call."""
        with torch.no_grad(), uncompiled():
            return self.module(*self.arguments, **self.options)


def _completed(call: Arguments) -> Arguments:
    """A call with what else a pipeline needs to make a first step; an empty prompt unless there is one in any form."""
    has_prompt = any(name.startswith("prompt") for name in call)
    return {**{name: value for name, value in FIRST_CALL.items() if name != "prompt" or not has_prompt}, **call}


def _holds_samples(value: Any) -> bool:
    """Whether a value has a row for each sample: a tensor of more than two dimensions, or a list of tensors."""
    if isinstance(value, torch.Tensor):
        return value.ndim > 2
    return isinstance(value, (list, tuple)) and len(value) > 0 and isinstance(value[0], torch.Tensor)


def find_denoiser(
    pipeline: DiffusionPipeline, component: str | None = None, call: Arguments | None = None
) -> Denoiser:
    """Finds the denoiser by running the pipeline up to the first step of its scheduler.

    Whatever network ran last before that step made the prediction that the step takes; its first call is kept. A named
    component is looked for until it is called: where two denoisers share the steps, the second one's come later.

    Args:
        pipeline: any diffusers pipeline; its weights may be on the meta device.
        component: the name of the network, for pipelines that have more than one.
        call: further arguments of the pipeline's call.

    Raises:
        DenoiserNotFound: the pipeline cannot be run, or no network runs in its loop.
    """
    calls: list[Denoiser] = []

    def record(name: str, module: nn.Module, arguments: Any, options: Any) -> None:
        calls.append(Denoiser(name, module, arguments, options))
        if name == component:
            raise Interruption

    def interrupt(*_: Any, **__: Any) -> None:
        raise Interruption

    _check_component(pipeline, component)
    with contextlib.ExitStack() as stack:
        for name, module in networks(pipeline).items():
            hook = functools.partial(record, name)
            handle = module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
            stack.callback(handle.remove)
        for scheduler in schedulers(pipeline) if component is None else ():
            stack.enter_context(stepping(scheduler, interrupt))
        _try_pipeline(pipeline, accepted_arguments(pipeline, _completed(call or {})))
    found = [one for one in calls if component in (None, one.component)]
    if not found:
        what = f"never calls {component!r}" if component else "calls no network before its scheduler's first step"
        raise DenoiserNotFound(
            f"{type(pipeline).__name__} {what}; components: {', '.join(sorted(pipeline.components)) or 'none'}"
        )
    # Guidance may call it again with less; the first call is the full one.
    denoiser = next(one for one in found if one.component == found[-1].component)
    wrapper = next((name for name, _ in denoiser.module.named_modules() if name.endswith(WRAPPED)), None)
    if wrapper is not None:
        name = f"{denoiser.component}.{wrapper.removesuffix(f'.{WRAPPED}')}"
        raise DenoiserNotFound(f"{name} is wrapped by torch.compile; use {name}.compile(), or compile what is pruned")
    return denoiser


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
    surroundings = running_weightless if is_weightless(pipeline) else contextlib.nullcontext
    try:
        with (
            torch.no_grad(),
            surroundings(pipeline),
            contextlib.nullcontext() if compiled else uncompiled(),
            contextlib.suppress(Interruption),
        ):
            return cast(Callable[..., Any], pipeline)(**arguments)
        pipeline.maybe_free_model_hooks()  # what a pipeline does at its end
        return None
    finally:
        pipeline.set_progress_bar_config(**bar)


def _try_pipeline(pipeline: DiffusionPipeline, arguments: Arguments) -> None:
    try:
        run_pipeline(pipeline, arguments)
    except Exception as error:
        raise DenoiserNotFound(
            f"{type(pipeline).__name__} could not be run with {sorted(arguments)}: {one_line(error)}; "
            "give what its call needs as Probe(call={...}), or as --call name=value"
        ) from error


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


def _check_component(pipeline: DiffusionPipeline, component: str | None) -> None:
    known = networks(pipeline)
    if component is not None and component not in known:
        raise DenoiserNotFound(
            f"{type(pipeline).__name__} has no network {component!r}; it has {', '.join(sorted(known)) or 'none'}"
        )
