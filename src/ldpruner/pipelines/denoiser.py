"""Finds the denoiser of a pipeline by running it up to its first step."""

import contextlib
import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.utils._pytree import tree_map

from ldpruner.errors import DenoiserNotFound, WeightsNeeded, one_line
from ldpruner.pipelines.meta import is_meta
from ldpruner.pipelines.patches import patched
from ldpruner.pipelines.running import (
    ORIGINAL_MODULE,
    Arguments,
    StopPipeline,
    accepted_arguments,
    force_eager,
    networks,
    run_pipeline,
    schedulers,
)
from ldpruner.pipelines.state import evaluation_mode, outside_pipeline

# Arguments of the call that finds the denoiser, where the pipeline names them. Only one step runs, but an
# image-to-image pipeline rounds few steps to none, and a multistep scheduler needs several.
DEFAULT_ARGUMENTS: Arguments = {"prompt": "", "class_labels": [0], "num_inference_steps": 10, "steps": 10}


@dataclass(frozen=True)
class Denoiser:
    """The network that a pipeline calls in every step, and one recorded call of it.

    Attributes:
        component: its name in the pipeline, such as `unet`.
        module: the network.
        arguments: positional arguments of the recorded call.
        options: keyword arguments of the recorded call.
        rows_per_step: batch sizes of all its calls in one step: guidance takes one call on two rows, or two calls.
    """

    component: str
    module: nn.Module
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    rows_per_step: int = 1

    @property
    def rows(self) -> int:
        """Batch size of the recorded call: 2 for one sample under classifier-free guidance."""
        values = [*self.arguments, *self.options.values()]
        return next((len(value) for value in values if _is_batch(value)), 1)

    def __call__(self) -> Any:
        """Repeats the recorded call."""
        arguments, options = copied((self.arguments, self.options))
        mode = evaluation_mode if self.module.training else contextlib.nullcontext
        with torch.no_grad(), force_eager(), mode(self.module), outside_pipeline(self.module):
            return self.module(*arguments, **options)


def copied(values: Any) -> Any:
    """A copy of a nest of lists and dictionaries with its tensors: networks pop from lists and write into tensors."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, values)


def _is_batch(value: Any) -> bool:
    """Whether a value has a row for each sample: a tensor of more than two dimensions, or a list of tensors."""
    if isinstance(value, torch.Tensor):
        return value.ndim > 2
    return isinstance(value, (list, tuple)) and len(value) > 0 and isinstance(value[0], torch.Tensor)


def find_denoiser(
    pipeline: DiffusionPipeline, component: str | None = None, call: Arguments | None = None
) -> Denoiser:
    """Finds the denoiser by running the pipeline up to the first step of its scheduler.

    The last network that runs before that step is the denoiser. Its first call is recorded, because guidance may call
    it again on fewer rows. With `component`, the pipeline runs to the end of the first step that calls that network:
    where two denoisers share the steps, the second is called later. The weights may be on the meta device.

    Raises:
        DenoiserNotFound: the pipeline cannot be run, or no network runs in its loop.
    """
    if component is not None and component not in (names := networks(pipeline)):
        raise DenoiserNotFound(
            f"{type(pipeline).__name__} has no network {component!r}; it has {', '.join(sorted(names)) or 'none'}"
        )
    calls = _record_calls(pipeline, component, accepted_arguments(pipeline, _complete_call(call or {})))
    if component is not None:
        calls = [recorded for recorded in calls if recorded.component == component]
    if not calls:
        problem = f"never calls {component!r}" if component else "calls no network before its scheduler's first step"
        raise DenoiserNotFound(
            f"{type(pipeline).__name__} {problem}; components: {', '.join(sorted(pipeline.components)) or 'none'}"
        )
    own = [recorded for recorded in calls if recorded.component == calls[-1].component]
    _check_compiled(own[0])
    return replace(own[0], rows_per_step=sum(recorded.rows for recorded in own))


def _complete_call(call: Arguments) -> Arguments:
    """Adds the arguments of a first step; the empty prompt only where the call has no prompt of any form."""
    has_prompt = any(name.startswith("prompt") for name in call)
    defaults = {name: value for name, value in DEFAULT_ARGUMENTS.items() if name != "prompt" or not has_prompt}
    return {**defaults, **call}


def _record_calls(pipeline: DiffusionPipeline, component: str | None, arguments: Arguments) -> list[Denoiser]:
    """The calls of networks up to the first scheduler step, or to the one after a named component is called."""
    calls: list[Denoiser] = []

    def record(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        calls.append(Denoiser(name, module, *copied((args, kwargs))))

    def is_called() -> bool:
        return component is None or any(recorded.component == component for recorded in calls)

    with contextlib.ExitStack() as stack:
        for name, module in networks(pipeline).items():
            hook = functools.partial(record, name)
            handle = module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
            stack.callback(handle.remove)
        for scheduler in schedulers(pipeline):
            stack.enter_context(patched(scheduler, step=_stopping(scheduler.step, is_called)))
        try:
            run_pipeline(pipeline, arguments)
        except Exception as error:
            if is_meta(pipeline) and "meta" in str(error).lower():
                raise WeightsNeeded(
                    f"{type(pipeline).__name__} computes something that needs its weights ({one_line(error)}); "
                    "open the pipeline with them"
                ) from error
            raise DenoiserNotFound(_why_not_run(pipeline, arguments, error)) from error
    return calls


def _stopping(step: Callable[..., Any], is_over: Callable[[], bool]) -> Callable[..., Any]:
    """A scheduler's step that leaves the pipeline once all that is wanted has happened."""

    def stop(*args: Any, **kwargs: Any) -> Any:
        if is_over():
            raise StopPipeline
        return step(*args, **kwargs)

    return stop


def _why_not_run(pipeline: DiffusionPipeline, arguments: Arguments, error: Exception) -> str:
    """What the call of a pipeline lacks, by its signature; else by the arguments that the error names."""
    advice = "give what its call needs as Probe(call={...}), or as --pipeline-arg name=value"
    name, parameters = type(pipeline).__name__, inspect.signature(type(pipeline).__call__).parameters
    absent = {key: value.default for key, value in parameters.items() if key not in ("self", *arguments)}
    required = [
        key for key, default in absent.items() if default is inspect.Parameter.empty and _is_named(parameters[key])
    ]
    if required:
        return f"{name} could not be run: its call lacks {', '.join(required)}; {advice}"
    words = dict.fromkeys(re.findall(r"\w+", str(error)))
    if named := [word for word in words if word in absent and absent[word] is None]:
        return f"{name} could not be run: its call may lack {', '.join(named)} ({one_line(error)}); {advice}"
    return f"{name} could not be run with {', '.join(sorted(arguments)) or 'no argument'}: {one_line(error)}; {advice}"


def _is_named(parameter: inspect.Parameter) -> bool:
    return parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)


def _check_compiled(denoiser: Denoiser) -> None:
    """Refuses a denoiser that holds modules which `torch.compile` has wrapped."""
    names = (name for name, _ in denoiser.module.named_modules() if name.endswith(ORIGINAL_MODULE))
    if (wrapped := next(names, None)) is not None:
        name = f"{denoiser.component}.{wrapped.removesuffix(f'.{ORIGINAL_MODULE}')}"
        raise DenoiserNotFound(f"{name} is wrapped by torch.compile; use {name}.compile(), or compile what is pruned")
