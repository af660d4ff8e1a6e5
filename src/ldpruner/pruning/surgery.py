"""Removing operators for good: their weights and their computation are gone, the rest is kept as it is."""

import copy
from collections.abc import Mapping
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from ldpruner.errors import PlanMismatch
from ldpruner.operators.discovery import Removal
from ldpruner.operators.patching import check_removals, modified
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.fingerprints import architecture
from ldpruner.pipelines.offload import loaded
from ldpruner.pipelines.running import networks, schedulers
from ldpruner.runtime import pruned_class, remove_
from ldpruner.selection.plan import Plan


def prune(pipeline: DiffusionPipeline, plan: Plan) -> DiffusionPipeline:
    """Makes a pruned pipeline; the original stays as it is.

    The new one has its own denoiser and scheduler and shares all other components.

    Raises:
        PlanMismatch: the plan was made for another architecture.
        OperatorNotFound: the plan names an operator that is not there.
    """
    _, denoiser = _target(pipeline, plan)
    removals = [choice.removal for choice in plan.removed]
    with loaded(pipeline) as offload:
        with modified(denoiser, removals):
            network = copy.deepcopy(denoiser)  # made while they are gone, so that their weights are not copied
        register_removals_(network, removals)
        own = {id(part): copy.deepcopy(part) for part in schedulers(pipeline)}
        pruned = _with_parts(pipeline, {**own, id(denoiser): network})
    offload(pruned)
    return pruned


def _with_parts(pipeline: DiffusionPipeline, parts: Mapping[int, Any]) -> DiffusionPipeline:
    """A copy of a pipeline, and of those that it holds, with other parts in the place of those of some identities."""
    other = copy.copy(pipeline)
    held = {**pipeline.components, **networks(pipeline)}
    swapped = {name: parts[id(part)] for name, part in held.items() if id(part) in parts}
    other.register_modules(**swapped)
    for name, value in vars(pipeline).items():
        if isinstance(value, DiffusionPipeline):
            setattr(other, name, _with_parts(value, parts))
    return other


def prune_(pipeline: DiffusionPipeline, plan: Plan) -> DiffusionPipeline:
    """Prunes a pipeline in place and returns it. Everything is checked before anything is removed.

    Raises:
        PlanMismatch: the plan was made for another architecture.
        OperatorNotFound: the plan names an operator that is not there.
    """
    component, denoiser = _target(pipeline, plan)
    removals = [choice.removal for choice in plan.removed]
    with loaded(pipeline):
        remove_(denoiser, [removal.model_dump() for removal in removals])
        register_removals_(denoiser, removals)
        pipeline.register_modules(**{component: denoiser})
    return pipeline


def _target(pipeline: DiffusionPipeline, plan: Plan) -> tuple[str, nn.Module]:
    """The denoiser that a plan is for."""
    component = plan.component or find_denoiser(pipeline).component
    denoiser = networks(pipeline).get(component)
    if denoiser is None:
        raise PlanMismatch(f"the plan is for component {component!r}; the pipeline has {sorted(pipeline.components)}")
    here = architecture(denoiser)
    if plan.architecture is not None and plan.architecture != here:
        there = plan.architecture
        raise PlanMismatch(
            f"the plan is for a {there.name} of {there.parameters:,} parameters, this is a {here.name} of "
            f"{here.parameters:,}; score this pipeline and select again"
        )
    check_removals(denoiser, plan.removed)
    return component, denoiser


def register_removals_(denoiser: Any, removals: list[Removal]) -> None:
    """Makes a denoiser's class and configuration say what was removed, so that it saves and loads as it is."""
    base: Any = type(denoiser)
    earlier = list(denoiser.config.get("removals", ()))
    if earlier or base.__name__.startswith("Pruned"):
        base = base.__bases__[0]
    denoiser.__class__ = pruned_class(base)
    denoiser.register_to_config(removals=[*earlier, *(removal.model_dump(mode="json") for removal in removals)])
