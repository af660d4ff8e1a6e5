"""Scores: intervals, and what a removal saves as a fraction."""

import math

import pytest

from ldpruner.budget import QUANTITIES, Budget, Quantity
from ldpruner.scoring.results import Score, Scores


def test_an_interval_is_symmetric_in_the_logarithm(scores: Scores) -> None:
    score = scores.scores[0].replace(score=2.0, standard_error=0.5)
    assert score.interval is not None
    low, high = score.interval
    assert math.log(high / 2) == pytest.approx(1.96 * 0.5)
    assert low * high == pytest.approx(4)


def test_a_score_without_an_error_has_no_interval(scores: Scores) -> None:
    assert scores.scores[0].replace(standard_error=None).interval is None


@pytest.mark.parametrize(("samples", "failure", "is_known"), [(0, None, False), (1, None, True), (0, "no", True)])
def test_a_score_is_known_if_it_was_sampled_or_failed(
    scores: Scores, samples: int, failure: str | None, is_known: bool
) -> None:
    score: Score = scores.scores[0].replace(samples=samples, failure=failure)
    assert score.is_known == is_known


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_savings_are_fractions_of_the_costs(scores: Scores, quantity: Quantity) -> None:
    name = "latency_ms" if quantity == "latency" else quantity
    for score in scores.scores:
        saved = getattr(score.savings, name) / getattr(scores.costs, name)
        assert score.savings.fraction(scores.costs, quantity) == pytest.approx(saved)


def test_a_knapsack_needs_what_the_budget_does_not_keep(scores: Scores) -> None:
    knapsack = scores.knapsack(scores.scores, Budget(parameters=0.7, macs=0.9, operators=2))
    assert knapsack.needs.tolist() == pytest.approx([0.3, 0.1])
    assert knapsack.savings.shape == (2, len(scores.scores))
    assert knapsack.count == 2
