"""How a pipeline calls its denoiser: which arguments belong to a sample, which to the noise level, which to neither.

Nothing here knows a pipeline by name: the calls of its first steps are recorded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ldpruner.errors import FinetuningError, one_line
from ldpruner.finetuning.call_arguments import UNSUPPORTED, parts_of_samples, places_of, sample_and_time
from ldpruner.finetuning.noise_levels import EVERYWHERE, TimeMap, line_through, own_range, table_of
from ldpruner.finetuning.steps import (
    FINE_STEPS,
    NetworkCall,
    Step,
    arguments_of,
    fine_steps,
    record_steps,
    running_once,
)
from ldpruner.pipelines.fingerprints import module_dtype
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import Arguments, networks
from ldpruner.pipelines.sampling import FAILURES

NOISE_LEVELS = 3  # needed to fit the denoiser's noise level to the scheduler's


@dataclass(frozen=True)
class CallSignature:
    """Calls a denoiser with any latents and noise levels, and everything else as its pipeline passes it.

    Attributes:
        component: the name of the denoiser.
        scheduler: steps the latents.
        template: the arguments of a recorded call, by name.
        sample, time: names of the arguments that hold the latents and the noise level.
        condition_places: positions, among the leaves of the arguments, of the tensors that belong to samples.
        repeated: names of the arguments that are lists of the same for each row, such as its size.
        sizes_differ: whether conditions have several sizes, such as the lengths of prompts.
        latents: shape of one sample's latents.
        appended: dimension in which the pipeline appends conditions to the latents, or None.
        copies: rows of a call for each sample; 2 where guidance calls the denoiser once.
        calls: denoiser calls in a step; 2 where guidance calls it twice.
        time_map: turns the scheduler's noise level into the denoiser's.
        time_range: the lowest and the highest of the scheduler's noise levels at which this denoiser is called.
        earlier: networks that are called before it in each step, and whose outputs it takes.
    """

    component: str
    scheduler: Any
    template: dict[str, Any]
    sample: str
    time: str
    condition_places: tuple[int, ...]
    repeated: tuple[str, ...]
    sizes_differ: bool
    latents: torch.Size
    appended: int | None
    copies: int
    calls: int
    time_map: TimeMap
    time_range: tuple[float, float] = EVERYWHERE
    earlier: tuple["EarlierCall", ...] = ()

    @property
    def own_conditions(self) -> int:
        """How many tensors are the denoiser's own conditions; those of earlier networks follow."""
        return len(self.condition_places) + (self.appended is not None)

    @property
    def all_conditions(self) -> int:
        """How many tensors hold conditions, those of earlier networks included."""
        return self.own_conditions + sum(call.signature.own_conditions for call in self.earlier)

    def conditions(self, calls: Sequence[NetworkCall], samples: int) -> list[Tensor]:
        """The conditions of each sample in the calls of a step: tensors [samples, copies, rows, ...]."""
        parts = []
        for arguments in arguments_of(calls, self.component)[: self.calls]:
            # of one sample, for lists that are longer for several move the places behind them
            same = {name: self.template[name] for name in self.repeated}
            leaves = pytree.tree_leaves({**arguments, **same})
            tensors = [leaves[place] for place in self.condition_places]
            if self.appended is not None:
                inputs, channels = arguments[self.sample], self.latents[self.appended - 1]
                tensors.append(inputs.narrow(self.appended, channels, inputs.shape[self.appended] - channels))
            # Copies follow each other, each with all samples. A sample may have several rows, such as frames.
            parts.append([rows.reshape(self.copies, samples, -1, *rows.shape[1:]).transpose(0, 1) for rows in tensors])
        own = [torch.cat(tensors, 1) for tensors in zip(*parts, strict=True)]
        return own + [tensor for call in self.earlier for tensor in call.signature.conditions(calls, samples)]

    def arguments(self, latents: Tensor, times: Tensor, conditions: Sequence[Tensor]) -> dict[str, Any]:
        """The arguments for latents [batch, ...] at noise levels [batch] with conditions [batch, rows, ...].

        All tensors have the device and the precision of the latents.
        """
        rows = [_like(tensor.flatten(0, 1).contiguous(), latents) for tensor in conditions[: self.own_conditions]]
        leaves, structure = pytree.tree_flatten(self.template)
        leaves = [_like(leaf, latents) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        for place, tensor in zip(self.condition_places, rows, strict=False):
            leaves[place] = tensor
        used = self.own_conditions
        for call in self.earlier:
            own, used = conditions[used:], used + call.signature.own_conditions
            for place, tensor in call.outputs(latents, times, own).items():
                leaves[place] = tensor
        named: dict[str, Any] = pytree.tree_unflatten(leaves, structure)
        inputs = latents if self.appended is None else torch.cat([latents, rows[-1]], self.appended)
        named |= {name: type(named[name])([named[name][0]] * len(latents)) for name in self.repeated}
        return {**named, self.sample: inputs, self.time: self._times(times, latents)}

    def prediction(self, output: Any, latents: Tensor) -> Tensor:
        """The prediction in what the denoiser returned, in the shape of the latents."""
        return predicted(output, latents).float()

    def _times(self, times: Tensor, latents: Tensor) -> Tensor:
        """The denoiser's noise levels in the shape and precision of the recorded ones."""
        recorded = torch.as_tensor(self.template[self.time])
        levels = self.time_map(times)
        levels = levels.to(recorded.dtype) if recorded.is_floating_point() else levels.round().long()
        return levels.to(latents.device).reshape(-1, *[1] * (recorded.ndim - 1)).expand(-1, *recorded.shape[1:])


@dataclass(frozen=True)
class EarlierCall:
    """A network that is called before the denoiser in each step, such as a ControlNet.

    Attributes:
        network: it is not trained.
        signature: how it is called.
        places: where its outputs are among the leaves of the denoiser's arguments, and among those of its output.
    """

    network: nn.Module
    signature: CallSignature
    places: Mapping[int, int]

    @torch.no_grad()
    def outputs(self, latents: Tensor, times: Tensor, conditions: Sequence[Tensor]) -> dict[int, Tensor]:
        """What it returns, by the place among the leaves of the denoiser's arguments."""
        noisy = latents.detach().to(dtype=module_dtype(self.network))
        leaves = pytree.tree_leaves(self.network(**self.signature.arguments(noisy, times, conditions)))
        return {place: _like(leaves[leaf], latents) for place, leaf in self.places.items()}


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
    parts, name = networks(pipeline), type(pipeline).__name__
    alternatives = [
        part for other, part in parts.items() if other != component and type(part) is type(parts[component])
    ]
    try:
        steps = _record(pipeline, component, probe, alternatives)
        pair = record_steps(pipeline, component, probe.arguments(pipeline, [0, 1]), 1)[0] if batches else None
        is_line = line_through(_times(steps, component, name)) is not None
        fine = [] if is_line and not alternatives else fine_steps(pipeline, probe)
    except FAILURES as error:
        raise FinetuningError(f"{name} cannot be watched: {one_line(error)}; {UNSUPPORTED}") from error
    links = _links(steps, component, name)
    linked = {place for places in links.values() for place in places}
    signature = _signature(steps, fine, pair, component, linked, name)
    calls = [
        EarlierCall(parts[other], _signature(steps, fine, pair, other, set(), name), places)
        for other, places in links.items()
    ]
    for call in calls:
        if (call.signature.copies, call.signature.calls) != (signature.copies, signature.calls):
            raise FinetuningError(f"{name} calls {call.signature.component} for other rows; {UNSUPPORTED}")
    time_range = own_range(fine, component) if alternatives else EVERYWHERE
    return replace(signature, time_range=time_range, earlier=tuple(calls))


def _record(
    pipeline: DiffusionPipeline, component: str, probe: Probe, alternatives: Sequence[nn.Module]
) -> list[Step]:
    """Steps at two noise levels or more; if need be, those of a finer run."""
    steps = record_steps(pipeline, component, probe.arguments(pipeline, [0]), NOISE_LEVELS)
    if len({step.time for step in steps}) < 2:
        with running_once(alternatives):
            fine = probe.replace(steps=FINE_STEPS).arguments(pipeline, [0])
            steps = record_steps(pipeline, component, fine, NOISE_LEVELS)
    if len({step.time for step in steps}) < 2:
        raise FinetuningError(f"{type(pipeline).__name__} has one noise level only; {UNSUPPORTED}")
    return steps


def _signature(
    steps: Sequence[Step], fine: Sequence[Step], pair: Step | None, component: str, linked: set[int], pipeline: str
) -> CallSignature:
    """How one network is called, besides what earlier networks return."""
    calls, latents = steps[0].of(component), steps[0].latents
    sample, time = sample_and_time(calls[0], pipeline)
    inputs = calls[0][sample]
    # some pipelines step the guided and the unguided copy of a sample together
    if inputs.ndim != latents.ndim or len(latents) not in (1, len(inputs)):
        raise FinetuningError(
            f"{pipeline} gives {component} {tuple(inputs.shape)} for latents {tuple(latents.shape)}; {UNSUPPORTED}"
        )
    other = linked | places_of(calls[0], {sample, time})
    parts = parts_of_samples(calls[0], pair.of(component)[0] if pair else None, other, len(inputs), pipeline)
    times = line_through(_times(steps, component, pipeline)) or (
        table_of(_times(fine, component, pipeline)) if fine else None
    )
    if times is None:
        raise FinetuningError(f"{pipeline} gives {component} noise levels of its own; {UNSUPPORTED}")
    return CallSignature(
        component=component,
        scheduler=steps[0].scheduler,
        template=calls[0],
        sample=sample,
        time=time,
        condition_places=parts.places,
        repeated=parts.repeated,
        sizes_differ=parts.sizes_differ,
        latents=latents.shape[1:],
        appended=_appended(inputs, latents),
        copies=len(inputs),
        calls=len(calls) if len(set(map(_shapes, calls))) == 1 else 1,
        time_map=times,
    )


def _times(steps: Sequence[Step], component: str, pipeline: str) -> list[tuple[float, Any]]:
    """The noise levels of the scheduler and of a network, in the steps in which it is called."""
    calls = [(step.time, step.of(component)[0]) for step in steps if step.of(component)]
    return [(time, call[sample_and_time(call, pipeline)[1]]) for time, call in calls]


def _shapes(call: Arguments) -> tuple[Any, ...]:
    return tuple(getattr(leaf, "shape", None) for leaf in pytree.tree_leaves(dict(call)))


def _links(steps: Sequence[Step], component: str, pipeline: str) -> dict[str, dict[int, int]]:
    """Outputs of other networks among the denoiser's arguments that change from step to step.

    Returns:
        by network: the place among the leaves of the denoiser's arguments, and that among those of the output.

    Raises:
        FinetuningError: an argument changes for another reason.
    """
    first, last = (pytree.tree_leaves(step.of(component)[0]) for step in (steps[0], steps[-1]))
    call = steps[0].of(component)[0]
    own = places_of(call, sample_and_time(call, pipeline))
    links: dict[str, dict[int, int]] = {}
    for place, (leaf, later) in enumerate(zip(first, last, strict=True)):
        if place in own or not isinstance(leaf, Tensor) or torch.equal(leaf, later):
            continue
        source = _source_of(leaf, steps[0], component)
        if source is None or source != _source_of(later, steps[-1], component):
            raise FinetuningError(
                f"{pipeline} gives its denoiser conditions that change from step to step; {UNSUPPORTED}"
            )
        links.setdefault(source[0], {})[place] = source[1]
    return links


def _source_of(tensor: Tensor, step: Step, component: str) -> tuple[str, int] | None:
    """The network whose output a tensor is, and its place there."""
    for call in step.calls:
        for place, leaf in enumerate(pytree.tree_leaves(call.output)) if call.component != component else ():
            if isinstance(leaf, Tensor) and leaf.shape == tensor.shape and torch.equal(leaf, tensor):
                return call.component, place
    return None


def _appended(inputs: Tensor, latents: Tensor) -> int | None:
    """The dimension in which a call's input is larger than the latents."""
    larger = [dim for dim in range(1, inputs.ndim) if inputs.shape[dim] != latents.shape[dim]]
    if len(larger) > 1:
        raise FinetuningError(f"the denoiser takes {tuple(inputs.shape)} for latents {tuple(latents.shape)}")
    return larger[0] if larger else None


def _like(tensor: Tensor, latents: Tensor) -> Tensor:
    dtype = latents.dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.to(latents.device, dtype)
