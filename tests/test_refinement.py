"""Trying plans as a whole: never a worse plan, found again from the same scores."""

import math

import pytest
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.bench import latent_distance
from ldpruner.errors import BudgetError
from ldpruner.fingerprints import weights_digest
from ldpruner.refinement import SAMPLES, TRIES

PROBE = ldpruner.Probe(samples=SAMPLES, steps=2)
DEEP = ldpruner.Budget(macs=0.25)


@pytest.fixture(scope="module")
def alone(tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...]) -> ldpruner.Scores:
    return ldpruner.score_operators(tiny, operators, PROBE, budgets=None)


@pytest.fixture(scope="module")
def refined(tiny: DiffusionPipeline, alone: ldpruner.Scores) -> ldpruner.Scores:
    return ldpruner.refine(tiny, alone, DEEP)


def away(pipeline: DiffusionPipeline, scores: ldpruner.Scores, budget: ldpruner.Budget) -> float:
    """How far the plan for a budget takes the latents of the probe."""
    pruned = ldpruner.prune(pipeline, ldpruner.select(scores, budget))
    return latent_distance(pipeline, pruned, (PROBE, PROBE))


def test_a_plan_that_moves_the_latents_less_is_found(
    tiny: DiffusionPipeline, alone: ldpruner.Scores, refined: ldpruner.Scores
) -> None:
    assert away(tiny, refined, DEEP) < 0.95 * away(tiny, alone, DEEP)
    plan = ldpruner.select(refined, DEEP)
    assert plan.predicted is not None
    assert plan.predicted.macs <= 0.25
    assert 1 < refined.plans_tried <= 1 + TRIES
    assert plan.provenance["plans_tried"] == refined.plans_tried


def test_what_was_measured_stays_and_the_weights_too(
    tiny: DiffusionPipeline, alone: ldpruner.Scores, refined: ldpruner.Scores
) -> None:
    assert [one.score for one in refined.scores] == [one.score for one in alone.scores]
    assert any(one.correction != 1 for one in refined.scores)
    digest = weights_digest(tiny.unet)
    assert ldpruner.refine(tiny, alone, DEEP) == refined
    assert weights_digest(tiny.unet) == digest


def test_without_tries_nothing_is_corrected(tiny: DiffusionPipeline, alone: ldpruner.Scores) -> None:
    same = ldpruner.refine(tiny, alone, DEEP, tries=0)
    assert same.scores == alone.scores
    assert same.plans_tried == 1


def test_what_cannot_be_removed_is_not_tried(tiny: DiffusionPipeline, alone: ldpruner.Scores) -> None:
    spoilt = tuple(one.model_copy(update={"score": math.inf}) for one in alone.scores[::3])
    scores = alone.model_copy(update={"scores": spoilt + alone.scores[1::3] + alone.scores[2::3]})
    budget = ldpruner.Budget(macs=0.7)
    plan = ldpruner.select(ldpruner.refine(tiny, scores, budget), budget)
    assert not {(one.operator, one.modification) for one in plan.removed} & {
        (one.operator, one.modification) for one in spoilt
    }


def test_a_budget_that_cannot_be_reached_says_what_can(tiny: DiffusionPipeline, alone: ldpruner.Scores) -> None:
    with pytest.raises(BudgetError, match="ask for macs="):
        ldpruner.refine(tiny, alone, ldpruner.Budget(macs=0.001))
