"""Removes operators for good: their weights and their computation are gone, everything else stays as it is."""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import DiffusionPipeline

from ldpruner.errors import DenoiserNotFound, ProbeError, one_line
from ldpruner.operators.discovery import Removal
from ldpruner.operators.native import NativeForm, native_form, stand_in_form
from ldpruner.operators.patching import modified
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.offload import check_copyable, without_offload
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import networks, schedulers
from ldpruner.pruning.compatibility import check_plan
from ldpruner.pruning.conversion import apply_native_, checked_form
from ldpruner.selection.plan import Plan
from ldpruner.stand_ins import remove_

logger = logging.getLogger(__name__)


def prune(pipeline: DiffusionPipeline, plan: Plan, *, probe: Probe | None = None) -> DiffusionPipeline:
    """Makes a pruned pipeline; the original does not change.

    The new pipeline has its own denoiser and scheduler and shares all other components. What the denoiser's class can
    express in its configuration, such as fewer blocks, is expressed there. The rest gets stand-ins.

    Args:
        pipeline: the original.
        plan: what to remove.
        probe: how the pipeline is called; None is the plan's own, without its images.

    Raises:
        PlanMismatch: the plan was made for another architecture.
        OperatorNotFound: the plan names an operator that the denoiser does not have.
    """
    component, denoiser, removals = check_plan(pipeline, plan)
    check_copyable(denoiser)
    with without_offload(pipeline) as offload:
        form = _native_form(pipeline, component, removals, probe or plan.provenance.get("probe", {}))
        with modified(denoiser, removals):
            pruned_denoiser = copy.deepcopy(denoiser)  # without the removed weights
        apply_native_(pruned_denoiser, form)
        replacements = {id(scheduler): copy.deepcopy(scheduler) for scheduler in schedulers(pipeline)}
        pruned = _replace_components(pipeline, {**replacements, id(denoiser): pruned_denoiser})
    offload(pruned)
    return pruned


def prune_(pipeline: DiffusionPipeline, plan: Plan, *, probe: Probe | None = None) -> DiffusionPipeline:
    """Prunes a pipeline in place and returns it. All that `prune` refuses is refused before anything is removed."""
    component, denoiser, removals = check_plan(pipeline, plan)
    with without_offload(pipeline):
        form = _native_form(pipeline, component, removals, probe or plan.provenance.get("probe", {}))
        remove_(denoiser, [removal.model_dump() for removal in removals])
        apply_native_(denoiser, form)
        pipeline.register_modules(**{component: denoiser})
    return pipeline


def _replace_components(pipeline: DiffusionPipeline, replacements: Mapping[int, Any]) -> DiffusionPipeline:
    """A copy of a pipeline, and of the pipelines that it holds, with components replaced by the id of the old one."""
    other = copy.copy(pipeline)
    components = {**pipeline.components, **networks(pipeline)}
    other.register_modules(
        **{name: replacements[id(part)] for name, part in components.items() if id(part) in replacements}
    )
    for name, value in vars(pipeline).items():
        if isinstance(value, DiffusionPipeline):
            setattr(other, name, _replace_components(value, replacements))
    return other


def _native_form(
    pipeline: DiffusionPipeline, component: str, removals: Sequence[Removal], probe: Probe | object
) -> NativeForm:
    """What the denoiser's class can express, checked on the first call of the denoiser."""
    network = networks(pipeline)[component]
    form = native_form(network, removals)
    if not form.removed:
        return form
    try:
        probe = Probe.model_validate(probe).completed(pipeline)
        denoiser = find_denoiser(pipeline, component, probe.arguments(pipeline, [0]))
    except (DenoiserNotFound, ProbeError, ValueError) as error:
        logger.warning("blocks keep stand-ins, as the pipeline cannot be run to compare: %s", one_line(error))
        return stand_in_form(network, removals)
    return checked_form(denoiser, removals, form)
