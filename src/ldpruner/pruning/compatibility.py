"""Whether a plan applies to a pipeline: the same operators, perhaps of another checkpoint or a variant.

A 9-channel inpainting U-Net differs from the plain one in its first convolution only. So the check is of the operators
that the plan removes, not of the whole network.
"""

import logging
from collections.abc import Mapping

from diffusers import DiffusionPipeline
from torch import nn

from ldpruner.errors import LdPrunerError, PlanMismatch
from ldpruner.operators.discovery import Removal
from ldpruner.operators.names import ancestors
from ldpruner.operators.patching import check_removals, removed_parameters
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.fingerprints import Architecture, architecture, count_parameters
from ldpruner.pipelines.running import networks
from ldpruner.profiling.machine import machine_of
from ldpruner.selection.plan import Plan, PlannedRemoval

logger = logging.getLogger(__name__)


def check_plan(pipeline: DiffusionPipeline, plan: Plan) -> tuple[str, nn.Module, list[Removal]]:
    """The component and the network that a plan is for, and its removals, all checked; a note goes to the log.

    Raises:
        PlanMismatch: the pipeline has no such component, or one of another architecture.
        OperatorNotFound: the network does not have an operator of the plan.
    """
    component, network = find_network(pipeline, plan)
    if note := latency_note(network, plan):
        logger.warning(note)
    return component, network, [planned.removal for planned in plan.removed]


def find_network(pipeline: DiffusionPipeline, plan: Plan) -> tuple[str, nn.Module]:
    """The component and the network that a plan is for, checked.

    Raises:
        PlanMismatch, OperatorNotFound: see `check_plan`.
    """
    component = plan.component if plan.component is not None else _find_component(pipeline, plan)
    network = networks(pipeline).get(component)
    if network is None:
        raise PlanMismatch(f"the plan is for component {component!r}; the pipeline has {sorted(pipeline.components)}")
    check_network(network, plan)
    return component, network


def check_network(network: nn.Module, plan: Plan) -> None:
    """Checks that a network has all the operators of a plan, as large as in the network that it was made for.

    Raises:
        PlanMismatch: the plan was made for another architecture.
        OperatorNotFound: the plan names an operator that the network does not have.
    """
    expected, actual = plan.architecture, architecture(network)
    if expected is not None and expected.digest != actual.digest and (problem := _difference(network, plan, expected)):
        raise PlanMismatch(
            f"the plan is for a {expected.name} of {expected.parameters:,} parameters, this is a {actual.name} of "
            f"{actual.parameters:,}: {problem}; score this pipeline and select again"
        )
    check_removals(network, [planned.removal for planned in plan.removed])


def latency_note(network: nn.Module, plan: Plan) -> str:
    """Says that a plan's latencies were measured on another machine; empty if they were not."""
    machine = machine_of(network)
    is_timed = plan.budget is not None and plan.budget.latency is not None and machine.device != "meta"
    if not is_timed or plan.machine in (None, machine):
        return ""
    place = f"the plan's latencies were measured on {plan.machine}"
    return f"{place}; on {machine} it may save more or less, measure it there"


def _find_component(pipeline: DiffusionPipeline, plan: Plan) -> str:
    """The sole network that has all the operators of a plan; only if several have them, the pipeline is run."""
    parts = networks(pipeline)
    fitting = [name for name, network in parts.items() if _fits(network, plan)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting or not parts:
        return find_denoiser(pipeline).component
    return max(parts, key=lambda name: (_count_operators(parts[name], plan), count_parameters(parts[name])))


def _fits(network: nn.Module, plan: Plan) -> bool:
    try:
        check_network(network, plan)
    except LdPrunerError:
        return False
    return True


def _count_operators(network: nn.Module, plan: Plan) -> int:
    names = {name for name, _ in network.named_modules()}
    return sum(planned.operator in names for planned in plan.removed)


def _difference(network: nn.Module, plan: Plan, expected: Architecture) -> str:
    """How a network differs from a plan's, where the plan touches it; empty if it does not."""
    if any(planned.parameters is None for planned in plan.removed):
        return "the plan does not say how large its operators are, so the networks must be the same"
    modules = dict(network.named_modules())
    problems = (_operator_difference(network, modules, planned, expected) for planned in plan.removed)
    return next(filter(None, problems), "")


def _operator_difference(
    network: nn.Module, modules: Mapping[str, nn.Module], planned: PlannedRemoval, expected: Architecture
) -> str:
    """How a removal's modules differ from those of the plan's network."""
    removal = planned.removal
    names = [removal.operator, *removal.cascaded]
    if removal.modification == "shortcut":
        names.append(f"{removal.operator}.{removal.source}")
    for name in names:
        if name not in modules:
            return f"it has no {name!r}"
        for around in ancestors(name):
            there, here = expected.blocks.get(around), modules[around]
            if there is not None and isinstance(here, nn.ModuleList) and len(here) != there:
                return f"{around!r} has {there} blocks there and {len(here)} here"
    parameters = removed_parameters(network, removal)
    if parameters != planned.parameters:
        return f"removing {removal.operator!r} takes {planned.parameters:,} parameters there and {parameters:,} here"
    return ""
