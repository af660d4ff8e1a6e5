"""How a pipeline calls its denoiser: which arguments belong to a sample, which to the noise level, which to neither.

Nothing here knows a pipeline by name: the calls of its first steps are recorded.
"""

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ldpruner.errors import FinetuningError
from ldpruner.pipelines.denoiser import Denoiser, copied, find_denoiser
from ldpruner.pipelines.patches import patched
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import Arguments, StopPipeline, networks, run_pipeline, schedulers

MAX_STEPS = 6  # that are recorded
NOISE_LEVELS = 3  # needed to fit the denoiser's noise level to the scheduler's

# Scale and shift from the scheduler's noise level to the denoiser's: the same, a share of 1000, or reversed.
TIME_SCALES = ((1.0, 0.0), (1e-3, 0.0), (-1e-3, 1.0))
UNSUPPORTED = "such pipelines cannot be finetuned yet"


@dataclass(frozen=True)
class CallSignature:
    """Calls a denoiser with any latents and noise levels, and everything else as its pipeline passes it.

    Attributes:
        template: the arguments of a recorded call, by name.
        sample, time: names of the arguments that hold the latents and the noise level.
        condition_places: positions, among the leaves of the arguments, of the tensors that belong to samples.
        latents: shape of one sample's latents.
        appended: dimension in which the pipeline appends conditions to the latents, or None.
        copies: rows of a call for each sample; 2 where guidance calls the denoiser once.
        calls: denoiser calls in a step; 2 where guidance calls it twice.
        scale, shift: turn the scheduler's noise level into the denoiser's.
    """

    template: dict[str, Any]
    sample: str
    time: str
    condition_places: tuple[int, ...]
    latents: torch.Size
    appended: int | None
    copies: int
    calls: int
    scale: float
    shift: float

    def conditions(self, calls: Sequence[Arguments], samples: int) -> list[Tensor]:
        """The conditions of each sample in the calls of a step: tensors [samples, copies, rows, ...]."""
        parts = []
        for arguments in calls[: self.calls]:
            leaves = pytree.tree_leaves(dict(arguments))
            tensors = [leaves[place] for place in self.condition_places]
            if self.appended is not None:
                inputs, channels = arguments[self.sample], self.latents[self.appended - 1]
                tensors.append(inputs.narrow(self.appended, channels, inputs.shape[self.appended] - channels))
            # Copies follow each other, each with all samples. A sample may have several rows, such as frames.
            parts.append([rows.reshape(self.copies, samples, -1, *rows.shape[1:]).transpose(0, 1) for rows in tensors])
        return [torch.cat(tensors, 1) for tensors in zip(*parts, strict=True)]

    def arguments(self, latents: Tensor, times: Tensor, conditions: Sequence[Tensor]) -> dict[str, Any]:
        """The arguments for latents [batch, ...] at noise levels [batch] with conditions [batch, rows, ...].

        All tensors have the device and the precision of the latents.
        """
        rows = [_like(tensor.flatten(0, 1), latents) for tensor in conditions]
        leaves, structure = pytree.tree_flatten(self.template)
        leaves = [_like(leaf, latents) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        for place, tensor in zip(self.condition_places, rows, strict=False):
            leaves[place] = tensor
        named: dict[str, Any] = pytree.tree_unflatten(leaves, structure)
        inputs = latents if self.appended is None else torch.cat([latents, rows[-1]], self.appended)
        return {**named, self.sample: inputs, self.time: self._times(times, latents)}

    def _times(self, times: Tensor, latents: Tensor) -> Tensor:
        """The denoiser's noise levels in the shape and precision of the recorded ones."""
        recorded = torch.as_tensor(self.template[self.time])
        levels = times.double() * self.scale + self.shift
        levels = levels.to(recorded.dtype) if recorded.is_floating_point() else levels.round().long()
        return levels.to(latents.device).reshape(-1, *[1] * (recorded.ndim - 1)).expand(-1, *recorded.shape[1:])


def named_arguments(denoiser: Denoiser) -> dict[str, Any]:
    """The arguments of a recorded call by name."""
    signature = inspect.signature(denoiser.module.forward)
    named: dict[str, Any] = dict(signature.bind(*denoiser.arguments, **denoiser.options).arguments)
    named |= named.pop("kwargs", {})
    return named


def predicted(output: Any, latents: Tensor) -> Tensor:
    """The prediction in a denoiser's output, in the shape of its latents; some predict a variance behind it."""
    prediction: Tensor = output[0]
    for dim, size in enumerate(latents.shape):
        prediction = prediction.narrow(dim, 0, size)
    return prediction


def watch_call_signature(pipeline: DiffusionPipeline, component: str, probe: Probe, *, batches: bool) -> CallSignature:
    """Records how a pipeline calls its denoiser; costs a few denoiser calls.

    Args:
        pipeline, component: the pipeline, and the name of its denoiser.
        probe: the arguments of the pipeline's call.
        batches: whether the pipeline can sample two at once.

    Raises:
        FinetuningError: such a call cannot be repeated with other latents.
    """
    name, parts = type(pipeline).__name__, networks(pipeline)
    module = parts[component]
    if any(part is not module and type(part) is type(module) for part in parts.values()):
        raise FinetuningError(f"{name} has two denoisers, each for a part of the noise levels; {UNSUPPORTED}")
    steps = record_steps(pipeline, component, probe.arguments(pipeline, [0]), NOISE_LEVELS)
    if len({step.time for step in steps}) < 2:
        raise FinetuningError(f"{name} takes {probe.steps} steps; at least two noise levels are needed")
    call = steps[0].calls[0]
    pair = named_arguments(find_denoiser(pipeline, component, probe.arguments(pipeline, [0, 1]))) if batches else None
    sample, time = _sample_and_time(call, name)
    inputs, latents = call[sample], steps[0].latents
    # some pipelines step the guided and the unguided copy of a sample together
    if inputs.ndim != latents.ndim or len(latents) not in (1, len(inputs)):
        raise FinetuningError(
            f"{name} gives its denoiser {tuple(inputs.shape)} for latents {tuple(latents.shape)}; {UNSUPPORTED}"
        )
    places = _condition_places(call, pair, {sample, time}, len(inputs))
    _check_constant(steps, places, name)
    scale, shift = _fit_times([(step.time, step.calls[0][time]) for step in steps], name)
    return CallSignature(
        template=call,
        sample=sample,
        time=time,
        condition_places=places,
        latents=latents.shape[1:],
        appended=_appended(inputs, latents),
        copies=len(inputs),
        calls=len(steps[0].calls) if len(set(map(_shapes, steps[0].calls))) == 1 else 1,
        scale=scale,
        shift=shift,
    )


@dataclass(frozen=True)
class Step:
    """The denoiser calls of a step, and the scheduler's noise level and latents, [samples, ...]."""

    calls: list[dict[str, Any]]
    time: float
    latents: Tensor


def record_steps(pipeline: DiffusionPipeline, component: str, arguments: Arguments, levels: int) -> list[Step]:
    """Runs a pipeline for some noise levels."""
    calls: list[dict[str, Any]] = []
    steps: list[Step] = []

    def record(module: nn.Module, args: Any, kwargs: Any) -> None:
        calls.append(named_arguments(Denoiser(component, module, *copied((args, kwargs)))))

    def recording(original: Any) -> Any:
        signature = inspect.signature(original)

        def step(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs).arguments
            if calls:
                steps.append(Step(list(calls), _first_number(bound["timestep"]), bound["sample"]))
                calls.clear()
            if len(steps) == MAX_STEPS or len({step.time for step in steps}) == levels:
                raise StopPipeline
            return original(*args, **kwargs)

        return step

    with ExitStack() as stack:
        hook = networks(pipeline)[component].register_forward_pre_hook(record, with_kwargs=True)
        stack.callback(hook.remove)
        for scheduler in schedulers(pipeline):
            stack.enter_context(patched(scheduler, step=recording(scheduler.step)))
        run_pipeline(pipeline, dict(arguments))
    if not steps:
        raise FinetuningError(f"{type(pipeline).__name__} takes no step in which its denoiser is called")
    return steps


def _shapes(call: Arguments) -> tuple[Any, ...]:
    return tuple(getattr(leaf, "shape", None) for leaf in pytree.tree_leaves(dict(call)))


def _check_constant(steps: Sequence[Step], places: Sequence[int], pipeline: str) -> None:
    """Raises where a condition depends on the noise level, as the residuals of a ControlNet do."""
    first, last = (pytree.tree_leaves(step.calls[0]) for step in (steps[0], steps[-1]))
    if any(not torch.equal(first[place], last[place]) for place in places):
        raise FinetuningError(f"{pipeline} gives its denoiser conditions that change from step to step; {UNSUPPORTED}")


def _sample_and_time(arguments: Arguments, pipeline: str) -> tuple[str, str]:
    """The names of the latents and of the noise level among the arguments."""
    sample = next((name for name, value in arguments.items() if isinstance(value, Tensor)), None)
    time = next((name for name in arguments if "timestep" in name), None)
    if sample is None or time is None:
        raise FinetuningError(
            f"{pipeline} calls its denoiser with {', '.join(arguments)}: no latents and timestep; {UNSUPPORTED}"
        )
    return sample, time


def _condition_places(call: Arguments, pair: Arguments | None, other: set[str], rows: int) -> tuple[int, ...]:
    """Positions of the tensors that belong to samples: those with twice the rows in the call for two samples."""
    leaves = pytree.tree_leaves(dict(call))
    pair_leaves = pytree.tree_leaves(dict(pair)) if pair is not None else [None] * len(leaves)
    names = [name for name, value in call.items() for _ in pytree.tree_leaves(value)]
    if len(pair_leaves) != len(leaves):
        raise FinetuningError(f"the denoiser takes lists that grow with the samples, among {names}; {UNSUPPORTED}")
    return tuple(
        place
        for place, (name, leaf, pair_leaf) in enumerate(zip(names, leaves, pair_leaves, strict=True))
        if name not in other and isinstance(leaf, Tensor) and leaf.ndim and _grows(leaf, pair_leaf, rows)
    )


def _grows(leaf: Tensor, pair_leaf: Tensor | None, rows: int) -> bool:
    """Whether a tensor grows with the samples; a guess by its rows where there is no call for two samples."""
    return leaf.ndim > 1 and len(leaf) == rows if pair_leaf is None else len(pair_leaf) == 2 * len(leaf)


def _appended(inputs: Tensor, latents: Tensor) -> int | None:
    """The dimension in which a call's input is larger than the latents."""
    larger = [dim for dim in range(1, inputs.ndim) if inputs.shape[dim] != latents.shape[dim]]
    if len(larger) > 1:
        raise FinetuningError(f"the denoiser takes {tuple(inputs.shape)} for latents {tuple(latents.shape)}")
    return larger[0] if larger else None


def _first_number(value: Any) -> float:
    return float(torch.as_tensor(value).flatten()[0])


def _fit_times(pairs: Sequence[tuple[float, Any]], pipeline: str) -> tuple[float, float]:
    """Scale and shift from the scheduler's noise levels to those of the calls."""
    is_half = torch.as_tensor(pairs[0][1]).dtype in (torch.float16, torch.bfloat16)
    x, y = np.array([(time, _first_number(level)) for time, level in pairs]).T
    tolerance = (1e-2 if is_half else 1e-4) * max(np.abs(y).max(), 1e-3)
    fitted = tuple(np.polyfit(x, y, 1).tolist())
    # rounded to half precision, the levels would give a line that is slightly off
    for scale, shift in (*TIME_SCALES, *(() if is_half else (fitted,))):
        if np.abs(x * scale + shift - y).max() <= tolerance:
            return scale, shift
    raise FinetuningError(f"{pipeline} gives its denoiser noise levels of its own; {UNSUPPORTED}")


def _like(tensor: Tensor, latents: Tensor) -> Tensor:
    dtype = latents.dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.to(latents.device, dtype)
