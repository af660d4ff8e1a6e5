"""How a pipeline calls its denoiser: what of a call belongs to a sample, to the noise level, or to neither.

Nothing here knows a pipeline by name: its first steps are watched.
"""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ldpruner.errors import FinetuningError
from ldpruner.pipelines.denoiser import Denoiser, find_denoiser
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import StopPipeline, networks, run_pipeline, schedulers, stepping

WATCHED = 6  # steps at most
LEVELS = 3  # noise levels that tell how a call is given them

# from the scheduler's noise level to the denoiser's: as it is, as a share of 1000, or backwards
USUAL = ((1.0, 0.0), (1e-3, 0.0), (-1e-3, 1.0))
CANNOT = "such pipelines cannot be finetuned yet"

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class CallSignature:
    """Calling a denoiser on latents and noise levels of one's own, with all else as its pipeline gives it.

    Attributes:
        template: the named arguments of a recorded call.
        sample, time: the names of the latents and of the noise level among them.
        rows: the places, among all values inside the arguments, of tensors that belong to samples.
        latents: the shape of one sample's latents.
        appended: the dimension in which the pipeline appends more to the latents, None if it appends nothing.
        copies, calls: rows of a call for each sample, and calls in a step: classifier-free guidance takes 2 of one.
        scale, shift: from the scheduler's noise level to that of the call.
    """

    template: dict[str, Any]
    sample: str
    time: str
    rows: tuple[int, ...]
    latents: torch.Size
    appended: int | None
    copies: int
    calls: int
    scale: float
    shift: float

    def of(self, calls: Sequence[Arguments], samples: int) -> list[Tensor]:
        """What the calls of a step give each sample beside its latents: tensors [samples, copies, ...]."""
        parts = [self._of(call, samples) for call in calls[: self.calls]]
        return [torch.cat(tensors, 1) for tensors in zip(*parts, strict=True)]

    def _of(self, arguments: Arguments, samples: int) -> list[Tensor]:
        leaves = pytree.tree_leaves(dict(arguments))
        found = [leaves[place] for place in self.rows]
        if self.appended is not None:
            whole, kept = arguments[self.sample], self.latents[self.appended - 1]
            found.append(whole.narrow(self.appended, kept, whole.shape[self.appended] - kept))
        # Copies follow one another, each with all samples; a sample may have several rows, such as frames.
        return [one.reshape(self.copies, samples, -1, *one.shape[1:]).transpose(0, 1) for one in found]

    def arguments(self, latents: Tensor, times: Tensor, given: Sequence[Tensor]) -> dict[str, Any]:
        """The arguments for latents [batch, ...] at noise levels [batch] with conditions [batch, rows, ...].

        All are put on the latents' device, and in their precision.
        """
        rows = [_like(one.flatten(0, 1), latents) for one in given]
        leaves, structure = pytree.tree_flatten(self.template)
        leaves = [_like(leaf, latents) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        for place, tensor in zip(self.rows, rows, strict=False):
            leaves[place] = tensor
        named: dict[str, Any] = pytree.tree_unflatten(leaves, structure)
        whole = latents if self.appended is None else torch.cat([latents, rows[-1]], self.appended)
        return {**named, self.sample: whole, self.time: self._times(times, latents)}

    def _times(self, times: Tensor, latents: Tensor) -> Tensor:
        """Noise levels as the denoiser is given them, in the shape of the recorded ones."""
        recorded = torch.as_tensor(self.template[self.time])
        levels = times.double() * self.scale + self.shift
        levels = levels.to(recorded.dtype) if recorded.is_floating_point() else levels.round().long()
        return levels.to(latents.device).reshape(-1, *[1] * (recorded.ndim - 1)).expand(-1, *recorded.shape[1:])


def named_arguments(denoiser: Denoiser) -> dict[str, Any]:
    """The arguments of a recorded call by name."""
    return _named(denoiser.module, denoiser.arguments, denoiser.options)


def _named(module: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    named: dict[str, Any] = dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
    named |= named.pop("kwargs", {})
    return named


def predicted(output: Any, latents: Tensor) -> Tensor:
    """What a denoiser found, [samples, ...] like its latents; some also tell a variance behind it."""
    found: Tensor = output[0]
    for dim, size in enumerate(latents.shape):
        found = found.narrow(dim, 0, size)
    return found


def watch_call_signature(pipeline: DiffusionPipeline, component: str, probe: Probe, *, batches: bool) -> CallSignature:
    """Finds out how a pipeline calls its denoiser; costs a few denoiser calls.

    Args:
        pipeline: the pipeline.
        component: the name of its denoiser.
        probe: what the pipeline is called with.
        batches: whether samples may be drawn together.

    Raises:
        FinetuningError: the denoiser is called in a way that cannot be repeated with latents of one's own.
    """
    name, parts = type(pipeline).__name__, networks(pipeline)
    module = parts[component]
    if any(other is not module and type(other) is type(module) for other in parts.values()):
        raise FinetuningError(f"{name} has two denoisers, each for a part of the noise levels; {CANNOT}")
    steps = watch_steps(pipeline, module, probe.arguments(pipeline, [0]), LEVELS)
    if len({step.time for step in steps}) < 2:
        raise FinetuningError(f"{name} makes {probe.steps} steps; two noise levels must be seen")
    one = steps[0].calls[0]
    pair = named_arguments(find_denoiser(pipeline, component, probe.arguments(pipeline, [0, 1]))) if batches else None
    sample, time = _names(one, name)
    whole, latents = one[sample], steps[0].latents
    # some step the guided and the unguided copy of a sample together
    if whole.ndim != latents.ndim or len(latents) not in (1, len(whole)):
        raise FinetuningError(
            f"{name} gives its denoiser {tuple(whole.shape)} for latents {tuple(latents.shape)}; {CANNOT}"
        )
    rows = _places_of_rows(one, pair, {sample, time}, len(whole))
    _check_constant(steps, rows, name)
    scale, shift = _affine([(step.time, step.calls[0][time]) for step in steps], name)
    return CallSignature(
        template=one,
        sample=sample,
        time=time,
        rows=rows,
        latents=latents.shape[1:],
        appended=_appended(whole, latents),
        copies=len(whole),
        calls=len(steps[0].calls) if _are_alike(steps[0].calls) else 1,
        scale=scale,
        shift=shift,
    )


def recorded_calls(
    pipeline: DiffusionPipeline, component: str, conditions: CallSignature, arguments: Arguments
) -> list[dict[str, Any]]:
    """The denoiser calls of a pipeline's first step; the denoiser runs only if guidance calls it again."""
    if conditions.calls == 1:
        return [named_arguments(find_denoiser(pipeline, component, arguments))]
    return watch_steps(pipeline, networks(pipeline)[component], arguments, 1)[0].calls


@dataclass(frozen=True)
class Step:
    """The denoiser calls of a step, and what the scheduler was given: its noise level, and latents [samples, ...]."""

    calls: list[dict[str, Any]]
    time: float
    latents: Tensor


def watch_steps(pipeline: DiffusionPipeline, module: nn.Module, arguments: Arguments, levels: int) -> list[Step]:
    """Runs a pipeline for some noise levels."""
    calls: list[dict[str, Any]] = []
    steps: list[Step] = []

    def record(_: nn.Module, args: Any, kwargs: Any) -> None:
        calls.append(_named(module, args, kwargs))

    def watched(original: Any) -> Any:
        signature = inspect.signature(original)

        def step(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            if calls:
                steps.append(Step(list(calls), _level(given["timestep"]), given["sample"]))
                calls.clear()
            if len(steps) == WATCHED or len({one.time for one in steps}) == levels:
                raise StopPipeline
            return original(*args, **kwargs)

        return step

    with ExitStack() as stack:
        stack.callback(module.register_forward_pre_hook(record, with_kwargs=True).remove)
        for scheduler in schedulers(pipeline):
            stack.enter_context(stepping(scheduler, watched(type(scheduler).step)))
        run_pipeline(pipeline, dict(arguments))
    if not steps:
        raise FinetuningError(f"{type(pipeline).__name__} makes no step in which its denoiser is called")
    return steps


def _are_alike(calls: Sequence[Arguments]) -> bool:
    """Whether guidance calls the denoiser again with arguments of the same shapes."""
    shapes = [[getattr(leaf, "shape", None) for leaf in pytree.tree_leaves(dict(call))] for call in calls]
    return all(one == shapes[0] for one in shapes)


def _check_constant(steps: Sequence[Step], rows: Sequence[int], pipeline: str) -> None:
    """Raises where a condition depends on the noise level, as what a ControlNet adds does."""
    first, last = (pytree.tree_leaves(step.calls[0]) for step in (steps[0], steps[-1]))
    if any(not torch.equal(first[place], last[place]) for place in rows):
        raise FinetuningError(f"{pipeline} gives its denoiser conditions that change from step to step; {CANNOT}")


def _names(arguments: Arguments, pipeline: str) -> tuple[str, str]:
    """Which arguments are the latents and the noise level."""
    sample = next((name for name, value in arguments.items() if isinstance(value, Tensor)), None)
    time = next((name for name in arguments if "timestep" in name), None)
    if sample is None or time is None:
        raise FinetuningError(
            f"{pipeline} calls its denoiser with {', '.join(arguments)}: no latents and timestep; {CANNOT}"
        )
    return sample, time


def _places_of_rows(one: Arguments, pair: Arguments | None, known: set[str], rows: int) -> tuple[int, ...]:
    """Where the tensors are that belong to samples: they have twice the rows for two."""
    leaves = pytree.tree_leaves(dict(one))
    others = pytree.tree_leaves(dict(pair)) if pair is not None else [None] * len(leaves)
    names = [name for name, value in one.items() for _ in pytree.tree_leaves(value)]
    if len(others) != len(leaves):
        raise FinetuningError(f"the denoiser is given lists that grow with the samples, among {names}; {CANNOT}")
    return tuple(
        place
        for place, (name, leaf, other) in enumerate(zip(names, leaves, others, strict=True))
        if name not in known and isinstance(leaf, Tensor) and leaf.ndim and _grows(leaf, other, rows)
    )


def _grows(leaf: Tensor, other: Tensor | None, rows: int) -> bool:
    """Whether a tensor grows with the samples; without a second call, whether it looks so."""
    return leaf.ndim > 1 and len(leaf) == rows if other is None else len(other) == 2 * len(leaf)


def _appended(whole: Tensor, latents: Tensor) -> int | None:
    """The dimension in which a call's input is larger than the latents."""
    larger = [dim for dim in range(1, whole.ndim) if whole.shape[dim] != latents.shape[dim]]
    if len(larger) > 1:
        raise FinetuningError(f"the denoiser sees {tuple(whole.shape)} for latents {tuple(latents.shape)}")
    return larger[0] if larger else None


def _level(time: Any) -> float:
    return float(torch.as_tensor(time).flatten()[0])


def _affine(pairs: Sequence[tuple[float, Any]], pipeline: str) -> tuple[float, float]:
    """Scale and shift from the scheduler's noise levels to those of the calls."""
    precision = torch.as_tensor(pairs[0][1]).dtype
    coarse = precision in (torch.float16, torch.bfloat16)
    x, y = np.array([(time, _level(level)) for time, level in pairs]).T
    tolerance = (1e-2 if coarse else 1e-4) * max(np.abs(y).max(), 1e-3)
    fitted = tuple(np.polyfit(x, y, 1).tolist())
    # rounded levels would give a line that is a little off
    for scale, shift in (*USUAL, *(() if coarse else (fitted,))):
        if np.abs(x * scale + shift - y).max() <= tolerance:
            return scale, shift
    raise FinetuningError(f"{pipeline} gives its denoiser noise levels of its own making; {CANNOT}")


def _like(tensor: Tensor, latents: Tensor) -> Tensor:
    dtype = latents.dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.to(latents.device, dtype)
