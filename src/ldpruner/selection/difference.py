"""What two plans remove differently."""

from ldpruner.budget import Predicted
from ldpruner.operators.names import overlap
from ldpruner.selection.plan import Plan, PlannedRemoval
from ldpruner.values import Value


class PlanSummary(Value):
    """A plan without its removals.

    Attributes:
        network: component and class of the network that the plan was made for, as far as they are known.
        budget: that it was selected for.
        removals: how many.
        predicted: what is left of that network.
        machine: where the latencies were measured.
    """

    network: str
    budget: str
    removals: int
    predicted: Predicted | None
    machine: str


class ExtraRemoval(Value):
    """A removal that only one of two plans has.

    Attributes:
        planned: the removal.
        overlaps: the operators that the other plan removes around it, or inside it.
    """

    planned: PlannedRemoval
    overlaps: tuple[str, ...]


class ChangedRemoval(Value):
    """An operator that both plans remove, each in its way."""

    first: PlannedRemoval
    second: PlannedRemoval


class PlanDifference(Value):
    """What two plans remove differently.

    Attributes:
        first, second: the plans in short.
        only_first, only_second: the operators that only one of them removes.
        changed: the operators that both remove, with another modification, source, or with others that go along.
        common: how many removals are the same.
    """

    first: PlanSummary
    second: PlanSummary
    only_first: tuple[ExtraRemoval, ...]
    only_second: tuple[ExtraRemoval, ...]
    changed: tuple[ChangedRemoval, ...]
    common: int

    @property
    def is_empty(self) -> bool:
        """Whether both plans remove the same."""
        return not (self.only_first or self.only_second or self.changed)


def compare_plans(first: Plan, second: Plan) -> PlanDifference:
    """Compares what two plans remove. Scores and the order of the removals do not matter."""
    removals = [{planned.operator: planned for planned in plan.removed} for plan in (first, second)]
    both = [name for name in removals[0] if name in removals[1]]
    changed = [name for name in both if removals[0][name].removal != removals[1][name].removal]
    return PlanDifference(
        first=_summary(first),
        second=_summary(second),
        only_first=_extra(first, second),
        only_second=_extra(second, first),
        changed=tuple(ChangedRemoval(first=removals[0][name], second=removals[1][name]) for name in changed),
        common=len(both) - len(changed),
    )


def _extra(plan: Plan, other: Plan) -> tuple[ExtraRemoval, ...]:
    names = [planned.operator for planned in other.removed]
    return tuple(
        ExtraRemoval(planned=planned, overlaps=tuple(name for name in names if overlap(name, planned.operator)))
        for planned in plan.removed
        if planned.operator not in names
    )


def _summary(plan: Plan) -> PlanSummary:
    network = [plan.component, plan.architecture.name if plan.architecture is not None else None]
    return PlanSummary(
        network=" ".join(filter(None, network)),
        budget="" if plan.budget is None else str(plan.budget),
        removals=len(plan.removed),
        predicted=plan.predicted,
        machine="" if plan.machine is None else str(plan.machine),
    )
