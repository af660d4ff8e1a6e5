"""Watches the denoising steps of a pipeline: which networks are called, at which noise level, by which scheduler."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ldpruner.errors import FinetuningError
from ldpruner.pipelines.denoiser import copied
from ldpruner.pipelines.patches import patched
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import Arguments, StopPipeline, networks, run_pipeline, schedulers

MAX_STEPS = 6  # that are recorded
FINE_STEPS = 100  # in which the range of a denoiser's noise levels is found


@dataclass(frozen=True)
class NetworkCall:
    """A call of a network: its arguments by name, and what it returned."""

    component: str
    arguments: dict[str, Any]
    output: Any = None


@dataclass(frozen=True)
class Step:
    """The calls of all networks since the last step; the scheduler, its noise level and its latents [samples, ...]."""

    calls: list[NetworkCall]
    time: float
    latents: Tensor
    scheduler: Any

    def of(self, component: str) -> list[dict[str, Any]]:
        """The arguments of the calls of one network."""
        return arguments_of(self.calls, component)


def arguments_of(calls: Iterable[NetworkCall], component: str) -> list[dict[str, Any]]:
    """The arguments of the calls of one network."""
    return [call.arguments for call in calls if call.component == component]


def named_arguments(module: nn.Module, arguments: Iterable[Any], options: Arguments) -> dict[str, Any]:
    """The arguments of a call by name."""
    named: dict[str, Any] = dict(inspect.signature(module.forward).bind(*arguments, **options).arguments)
    named |= named.pop("kwargs", {})
    return named


def record_steps(pipeline: DiffusionPipeline, component: str, arguments: Arguments, levels: int) -> list[Step]:
    """Runs a pipeline until a network was called at so many noise levels; returns the steps in which it was.

    Raises:
        FinetuningError: there is none.
    """
    steps: list[Step] = []

    def keep(step: Step) -> None:
        if step.of(component):
            steps.append(step)
        if len(steps) == MAX_STEPS or len({recorded.time for recorded in steps}) == levels:
            raise StopPipeline

    _watch_steps(pipeline, arguments, keep)
    if not steps:
        raise FinetuningError(f"{type(pipeline).__name__} takes no step in which its denoiser is called")
    return steps


def record_until(pipeline: DiffusionPipeline, component: str, arguments: Arguments) -> list[NetworkCall]:
    """Runs a pipeline until it first calls a network, which does not run any more; returns all calls until then."""
    calls: list[NetworkCall] = []
    _watch_steps(pipeline, arguments, lambda _: None, calls, last=component)
    return calls


def fine_steps(pipeline: DiffusionPipeline, probe: Probe) -> list[Step]:
    """Runs a pipeline in many steps, in which each network runs only once: all noise levels that it passes.

    The conditions and the latents of these steps mean nothing.
    """
    steps: list[Step] = []
    arguments = probe.replace(steps=FINE_STEPS).arguments(pipeline, [0])
    with running_once(networks(pipeline).values()):
        _watch_steps(pipeline, arguments, steps.append)
    return steps


@contextmanager
def running_once(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Lets each network run once for each size of its input, and then return the same again."""
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(patched(module, forward=_run_once(module.forward)))
        yield


def _run_once(forward: Callable[..., Any]) -> Callable[..., Any]:
    outputs: dict[str, Any] = {}

    def first_output(*args: Any, **kwargs: Any) -> Any:
        key = str(pytree.tree_map(lambda leaf: getattr(leaf, "shape", type(leaf)), (args, kwargs)))
        if key not in outputs:
            outputs[key] = forward(*args, **kwargs)
        return copied(outputs[key])

    return first_output


def _watch_steps(
    pipeline: DiffusionPipeline,
    arguments: Arguments,
    on_step: Callable[[Step], None],
    calls: list[NetworkCall] | None = None,
    last: str | None = None,
) -> None:
    """Runs a pipeline until it calls the network `last`, and keeps the calls since the last step in `calls`.

    `on_step` gets each step before the scheduler takes it, and may raise StopPipeline.
    """
    calls = calls if calls is not None else []

    def record(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        calls.append(NetworkCall(name, copied(named_arguments(module, args, kwargs))))
        if name == last:
            raise StopPipeline

    def record_output(name: str, _: nn.Module, __: Any, output: Any) -> None:
        place = next(place for place in reversed(range(len(calls))) if calls[place].component == name)
        calls[place] = replace(calls[place], output=copied(output))

    def recording(scheduler: Any) -> Any:
        original, signature = scheduler.step, inspect.signature(scheduler.step)

        def step(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs).arguments
            time = float(torch.as_tensor(bound["timestep"]).flatten()[0])
            on_step(Step(list(calls), time, bound["sample"], scheduler))
            calls.clear()
            return original(*args, **kwargs)

        return step

    with ExitStack() as stack:
        for name, module in networks(pipeline).items():
            before = functools.partial(record, name)
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(functools.partial(record_output, name)).remove)
        for scheduler in schedulers(pipeline):
            stack.enter_context(patched(scheduler, step=recording(scheduler)))
        run_pipeline(pipeline, dict(arguments))
