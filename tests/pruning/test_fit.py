"""Pruning to a latency that is measured."""

from pathlib import Path

import pytest
from diffusers import DiffusionPipeline

from ldpruner import Budget, Plan, Scores
from ldpruner.errors import BudgetError
from ldpruner.profiling.benchmark import Comparison, Percentiles
from ldpruner.pruning.fit import fit, prune_to_budget


@pytest.mark.parametrize("error", [0.8, 1.0, 1.3])
def test_a_wrong_prediction_is_made_good(error: float) -> None:
    found = fit(lambda asked: asked, lambda made: made * error, 0.5)
    assert 0.9 * 0.5 <= found * error <= 0.5


def test_an_unreachable_target_is_an_error() -> None:
    def made(asked: float) -> float:
        if asked < 0.6:
            raise BudgetError("no")
        return asked

    assert fit(made, lambda made: made, 0.7) <= 0.7
    with pytest.raises(BudgetError, match=r"latency=0\.61 cannot be reached"):
        fit(made, lambda made: made * 1.1, 0.61)


def reaching(asked: float) -> float:
    """Made for a prediction that cannot be below 0.514."""
    if asked < 0.514:
        raise BudgetError("no", least=0.514)
    return asked


def test_all_is_removed_and_measured_where_the_prediction_is_just_not_enough() -> None:
    """A prediction is off by some per cent on a busy machine."""
    assert fit(reaching, lambda made: made * 0.9, 0.5) == 0.514
    with pytest.raises(BudgetError, match=r"removing all that can be removed measured latency=0\.514"):
        fit(reaching, lambda made: made, 0.5)


def test_a_budget_far_below_all_predictions_is_refused_without_measuring() -> None:
    with pytest.raises(BudgetError, match=r"^no$"):
        fit(reaching, lambda one: pytest.fail("measured"), 0.1)


def test_what_only_just_meets_the_budget_is_kept() -> None:
    """Where selections come in coarse steps, none may leave room for noise."""
    assert fit(lambda asked: asked, lambda made: 0.64 if made > 0.5 else 0.3, 0.65) == pytest.approx(0.65)


def test_a_plan_is_on_disk_before_it_is_timed(
    tiny: DiffusionPipeline, scores: Scores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Plan] = []

    def compared(*_: object, **__: object) -> Comparison:
        seen.append(Plan.read(tmp_path / "plan.json"))
        return Comparison(pipelines=(), latency_ratio=Percentiles(median=0.79, p10=0.7, p90=0.8))

    monkeypatch.setattr("ldpruner.pruning.fit.compare", compared)
    budget = Budget(latency=0.8)
    _, plan = prune_to_budget(tiny, scores, budget, run=tmp_path, provenance={"ignore": ["a"]})
    assert seen
    assert all(early.budget == budget and "measured" not in early.provenance for early in seen)
    assert plan.provenance["measured"] is True
    assert plan.provenance["ignore"] == ["a"]
    assert Plan.read(tmp_path / "plan.json") == plan
