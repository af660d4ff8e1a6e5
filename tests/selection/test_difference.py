"""What two plans remove differently."""

from ldpruner import Budget, Plan
from ldpruner.budget import Predicted
from ldpruner.operators.discovery import ModificationName, Removal
from ldpruner.selection.difference import compare_plans
from ldpruner.selection.plan import PlannedRemoval


def planned(operator: str, modification: ModificationName = "identity", score: float = 1.0) -> PlannedRemoval:
    return PlannedRemoval(removal=Removal(operator=operator, modification=modification), score=score)


def plan(*removed: PlannedRemoval, kept: float = 0.5) -> Plan:
    predicted = Predicted(latency=kept, parameters=kept, macs=kept, memory=kept)
    return Plan(removed=removed, component="unet", budget=Budget(macs=kept), predicted=predicted)


def test_a_plan_does_not_differ_from_itself_whatever_the_scores_and_the_order() -> None:
    difference = compare_plans(plan(planned("a"), planned("b")), plan(planned("b", score=3), planned("a")))
    assert difference.is_empty
    assert difference.common == 2


def test_removals_of_one_plan_only_name_what_the_other_removes_around_or_inside() -> None:
    first = plan(planned("mid_block"), planned("a"))
    second = plan(planned("mid_block.resnets.0"), planned("mid_block.resnets.1"), planned("a"), planned("mid_blocks"))
    difference = compare_plans(first, second)
    assert not difference.is_empty
    (outer,) = difference.only_first
    assert outer.overlaps == ("mid_block.resnets.0", "mid_block.resnets.1")
    assert [extra.overlaps for extra in difference.only_second] == [("mid_block",), ("mid_block",), ()]
    assert difference.common == 1


def test_an_operator_that_both_remove_in_another_way_is_a_change() -> None:
    difference = compare_plans(plan(planned("a")), plan(planned("a", "zero"), kept=0.4))
    assert (difference.only_first, difference.only_second, difference.common) == ((), (), 0)
    (changed,) = difference.changed
    assert (changed.first.modification, changed.second.modification) == ("identity", "zero")
    assert difference.first.predicted is not None
    assert difference.second.predicted is not None
    assert (difference.first.predicted.macs, difference.second.predicted.macs) == (0.5, 0.4)
    assert (difference.first.budget, difference.first.network) == ("macs=0.5", "unet")


def test_a_plan_by_hand_compares_too() -> None:
    difference = compare_plans(Plan(removed=()), plan(planned("a")))
    assert (difference.first.predicted, difference.first.budget, difference.first.machine) == (None, "", "")
    assert len(difference.only_second) == 1
