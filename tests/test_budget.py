"""Budgets: fractions in (0, 1], and errors in one line."""

import math
from typing import Any

import pytest

from ldpruner.budget import QUANTITIES, Budget
from ldpruner.errors import BudgetError


def assert_one_line(error: BaseException, *parts: str) -> None:
    message = str(error)
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("name", QUANTITIES)
@pytest.mark.parametrize("kept", [0.0, -0.5, 1.01, 65.0, math.nan, math.inf])
def test_a_budget_outside_0_to_1_is_refused(name: str, kept: float) -> None:
    with pytest.raises(BudgetError) as caught:
        Budget.model_validate({name: kept})
    assert_one_line(caught.value, f"{name}={kept:g}")


@pytest.mark.parametrize(
    ("quantities", "seen"),
    [
        ({"speed": 0.5}, "'speed' (=0.5)"),
        ({"latency": "fast"}, "'fast'"),
        ({"operators": 0}, "operators=0"),
        ({"operators": -2}, "operators=-2"),
        ({"operators": 1.5}, "operators=1.5"),
        ({}, "empty budget"),
        ({"latency": None}, "empty budget"),
    ],
)
def test_a_budget_that_means_nothing_is_refused(quantities: dict[str, Any], seen: str) -> None:
    with pytest.raises(BudgetError) as caught:
        Budget(**quantities)
    assert_one_line(caught.value, seen)


def test_a_budget_names_the_fractions_that_it_limits() -> None:
    budget = Budget(latency=0.65, macs=1, operators=3)
    assert budget.kept == {"latency": 0.65, "macs": 1.0}
    assert str(budget) == "latency=0.65 macs=1 operators=3"
