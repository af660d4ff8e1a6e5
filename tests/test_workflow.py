"""From scores and a budget to a pruned pipeline: fitting what was measured, and rounds."""

import pytest
import torch
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.budgets import Predicted
from ldpruner.errors import BudgetError
from ldpruner.latents import draw_latents
from ldpruner.scores import Scores
from ldpruner.selection import Choice, Plan, joined
from ldpruner.workflow import fit, prune_to_budget

PROBE = ldpruner.Probe(samples=2, steps=2)


@pytest.mark.parametrize("error", [0.8, 1.0, 1.3])
def test_a_wrong_prediction_is_made_good(error: float) -> None:
    found = fit(lambda asked: asked, lambda made: made * error, 0.5)
    assert 0.9 * 0.5 <= found * error <= 0.5


def test_what_cannot_be_reached_is_told() -> None:
    def made(asked: float) -> float:
        if asked < 0.6:
            raise BudgetError("no")
        return asked

    assert fit(made, lambda one: one, 0.7) <= 0.7
    with pytest.raises(BudgetError, match=r"latency=0\.61 cannot be reached"):
        fit(made, lambda one: one * 1.1, 0.61)


def test_what_only_just_meets_the_budget_is_kept() -> None:
    """Where selections come in coarse steps, none may leave room for noise."""
    assert fit(lambda asked: asked, lambda made: 0.64 if made > 0.5 else 0.3, 0.65) == pytest.approx(0.65)


def test_rounds_end_at_a_plan_for_the_original(tiny: DiffusionPipeline) -> None:
    """The plan of all rounds, applied at once, gives what pruning round after round gave."""
    scored: list[int] = []

    def score(current: DiffusionPipeline, place: int, share: ldpruner.Budget) -> Scores:
        scored.append(sum(weight.numel() for weight in current.unet.parameters()))
        return ldpruner.score_operators(current, None, PROBE, budgets=[share])

    budget = ldpruner.Budget(parameters=0.5)
    pruned, plan = prune_to_budget(tiny, score, budget, rounds=3)
    assert len(scored) == 3
    assert scored[0] > scored[1] > scored[2]
    at_once = ldpruner.prune(tiny, plan)
    assert torch.equal(draw_latents(at_once, PROBE, [0, 1]), draw_latents(pruned, PROBE, [0, 1]))
    assert plan.predicted is not None
    left = sum(weight.numel() for weight in pruned.unet.parameters()) / scored[0]
    assert left == pytest.approx(plan.predicted.parameters, abs=0.01)
    assert left <= 0.5


def test_an_outer_removal_takes_the_place_of_inner_ones() -> None:
    half = Predicted(latency=0.5, parameters=0.5, macs=0.5, memory=0.5)
    first = Plan(
        removed=(
            Choice(operator="mid.attn", modification="zero", also=("mid.norm", "proj")),
            Choice(operator="up.conv", modification="identity"),
        ),
        predicted=half,
    )
    second = Plan(removed=(Choice(operator="mid", modification="identity"),), predicted=half)
    plan = joined([first, second])
    assert [(one.operator, one.also) for one in plan.removed] == [("up.conv", ()), ("mid", ("proj",))]
    assert plan.predicted is not None
    assert plan.predicted.latency == 0.25
