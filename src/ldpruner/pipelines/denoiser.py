"""The denoiser of a pipeline, found by running it up to its first step."""

import contextlib
import functools
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from ldpruner.errors import DenoiserNotFound, one_line
from ldpruner.pipelines.running import (
    WRAPPED,
    Arguments,
    StopPipeline,
    accepted_arguments,
    networks,
    run_pipeline,
    schedulers,
    stepping,
    uncompiled,
)

# What a pipeline is called with to see how it calls its denoiser. Only what it accepts is passed.
# Few steps would be none for an image-to-image pipeline, or too few for a multistep scheduler; only one is run.
FIRST_CALL: Arguments = {"prompt": "", "class_labels": [0], "num_inference_steps": 10, "steps": 10}


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
            raise StopPipeline

    def interrupt(*_: Any, **__: Any) -> None:
        raise StopPipeline

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


def _try_pipeline(pipeline: DiffusionPipeline, arguments: Arguments) -> None:
    try:
        run_pipeline(pipeline, arguments)
    except Exception as error:
        raise DenoiserNotFound(
            f"{type(pipeline).__name__} could not be run with {sorted(arguments)}: {one_line(error)}; "
            "give what its call needs as Probe(call={...}), or as --pipeline-arg name=value"
        ) from error


def _check_component(pipeline: DiffusionPipeline, component: str | None) -> None:
    known = networks(pipeline)
    if component is not None and component not in known:
        raise DenoiserNotFound(
            f"{type(pipeline).__name__} has no network {component!r}; it has {', '.join(sorted(known)) or 'none'}"
        )
