"""Criteria by which ld-pruner and its baselines choose the operators to remove."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

import ldpruner
from benchmarks.criteria import CRITERIA, Case, Planner, bk_sdm, bk_sdm_steps, block_influences, output_losses
from ldpruner.errors import BudgetError
from ldpruner.operators.discovery import Candidate, denoiser_macs
from ldpruner.operators.patching import modified
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.fingerprints import architecture, count_parameters
from ldpruner.pipelines.sampling import sample_latents
from ldpruner.profiling.costs import Costs
from ldpruner.scoring.results import Savings, Score, Scores

pytestmark = pytest.mark.extensive

PROBE = ldpruner.Probe(samples=2, steps=2)
CUT = 0.4


@pytest.fixture(scope="module")
def digits() -> DiffusionPipeline:
    return ldpruner.load("zoo:digits")


@pytest.fixture(scope="module")
def case(digits: DiffusionPipeline) -> Case:
    return unscored(digits)


@pytest.fixture(scope="module")
def planners(case: Case) -> dict[str, Planner]:
    return {name: criterion(case) for name, criterion in CRITERIA.items()}


def unscored(pipeline: DiffusionPipeline) -> Case:
    """A case with the places of the operators as scores and MACs as time: the same on every machine."""
    operators, denoiser = ldpruner.find_operators(pipeline), find_denoiser(pipeline)
    size, macs = count_parameters(denoiser.module), denoiser_macs(denoiser)
    pairs = [(operator, candidate) for operator in operators for candidate in operator.candidates]
    scores = Scores(
        component=denoiser.component,
        architecture=architecture(denoiser.module),
        probe=PROBE,
        metric="mean_std",
        costs=Costs(parameters=size, macs=macs, latency_ms=macs, denoiser_ms=macs, memory=8 * size),
        denoiser_calls=1,
        scores=tuple(score(*pair, float(place)) for place, pair in enumerate(pairs)),
    )
    return Case(pipeline, scores)


def score(operator: ldpruner.Operator, candidate: Candidate, value: float) -> Score:
    size, macs = candidate.parameters, candidate.macs
    return Score(
        operator=operator.name,
        module_type=operator.module_type,
        modification=candidate.modification,
        score=value,
        samples=1,
        savings=Savings(parameters=size, macs=macs, latency_ms=macs, memory=4 * size),
        candidate=candidate,
    )


def names(steps: Sequence[Sequence[Score]]) -> list[str]:
    """The steps of BK-SDM's rule, written short."""
    return [" + ".join(one.operator.replace("_blocks", "") for one in step) for step in steps]


def pair(level: str, place: int) -> str:
    return f"{level}.resnets.{place} + {level}.attentions.{place}"


@pytest.mark.parametrize("name", CRITERIA)
def test_a_plan_meets_the_budget_and_prunes(case: Case, planners: dict[str, Planner], name: str) -> None:
    plan = planners[name](CUT)
    assert plan.predicted is not None
    assert plan.predicted.latency <= 1 - CUT + 1e-9
    pruned = ldpruner.prune(case.pipeline, plan)
    assert count_parameters(pruned.unet) == pytest.approx(
        plan.predicted.parameters * count_parameters(case.denoiser), abs=1
    )
    assert sample_latents(pruned, PROBE, [0]).shape == sample_latents(case.pipeline, PROBE, [0]).shape


def test_no_criterion_changes_the_denoiser(case: Case, planners: dict[str, Planner]) -> None:
    assert planners
    fresh = ldpruner.load("zoo:digits")
    assert architecture(case.denoiser) == architecture(fresh.unet)
    assert torch.equal(sample_latents(case.pipeline, PROBE, [0]), sample_latents(fresh, PROBE, [0]))
    assert not any(module._forward_hooks for module in case.denoiser.modules())


def test_random_plans_follow_their_seed(case: Case) -> None:
    first, again, other = (CRITERIA["random"](Case(case.pipeline, case.scores, seed))(CUT) for seed in (1, 1, 2))
    assert first.removed == again.removed != other.removed


def test_the_fewest_parameters_go_first_and_no_activation(case: Case) -> None:
    removed = CRITERIA["fewest parameters"](case)(0.01).removed
    sizes = {one.operator: one.candidate.parameters for one in case.scores.scores}
    assert min(sizes[one.operator] for one in removed) == min(size for size in sizes.values() if size)
    assert [one.score for one in removed] == [sizes[one.operator] for one in removed]


def test_bk_sdm_takes_inner_pairs_then_the_middle_then_the_deepest_level() -> None:
    steps = names(bk_sdm_steps(unscored(ldpruner.load("zoo:satellite")).scores.scores))
    assert steps == [
        *(pair("down.2", 1), pair("up.0", 1), pair("down.1", 1), pair("up.1", 1)),
        *("down.0.resnets.1", "up.2.resnets.1"),
        "mid_block",
        *(pair("down.2", 0), pair("up.0", 0), pair("up.0", 2)),
        *(pair("down.1", 0), pair("up.1", 0), pair("up.1", 2)),
        *("down.0.resnets.0", "up.2.resnets.0", "up.2.resnets.2"),
    ]


def test_with_one_layer_for_each_block_bk_sdm_begins_with_the_middle() -> None:
    steps = names(bk_sdm_steps(unscored(ldpruner.load("zoo:digits")).scores.scores))
    assert steps == [
        "mid_block",
        *(pair("down.2", 0), pair("up.0", 0), pair("up.0", 1)),
        *(pair("down.1", 0), pair("up.1", 0), pair("up.1", 1)),
        *("down.0.resnets.0", "up.2.resnets.0", "up.2.resnets.1"),
    ]


def test_bk_sdm_stops_where_the_budget_is_met(case: Case) -> None:
    plan = bk_sdm(case)(0.01)
    assert [one.operator for one in plan.removed] == ["mid_block"]


def test_a_budget_that_bk_sdm_cannot_reach_raises(case: Case) -> None:
    with pytest.raises(BudgetError, match=r"latency=0\.01 cannot be reached by BK-SDM: all that it removes leaves"):
        bk_sdm(case)(0.99)


def test_block_influence_is_one_minus_the_cosine_of_input_and_output(case: Case) -> None:
    block = "mid_block.resnets.0"
    influences: list[np.ndarray] = []

    def watch(_: nn.Module, arguments: Any, result: torch.Tensor) -> None:
        before, after = (tensor.double().numpy() for tensor in (arguments[0], result))
        norms = np.sqrt((before**2).sum(axis=1)) * np.sqrt((after**2).sum(axis=1))
        influences.append(1 - (before * after).sum(axis=1) / norms)

    handle = case.denoiser.get_submodule(block).register_forward_hook(watch)
    for index in range(PROBE.samples):
        sample_latents(case.pipeline, PROBE, [index])
    handle.remove()
    assert block_influences(case)[block] == pytest.approx(np.mean(influences), rel=1e-4)


def test_only_blocks_have_an_influence(case: Case) -> None:
    influences = block_influences(case)
    assert {"mid_block", "down_blocks.1.attentions.0", "up_blocks.0.resnets.0"} <= set(influences)
    assert not any(list(case.denoiser.get_submodule(name).children()) == [] for name in influences)
    assert all(0 <= value <= 2 for value in influences.values())


def test_output_loss_is_the_change_of_the_denoisers_output(case: Case) -> None:
    calls: list[Any] = []
    handle = case.denoiser.register_forward_pre_hook(
        lambda _, arguments, options: calls.append((arguments, options)), with_kwargs=True
    )
    sample_latents(case.pipeline, PROBE, range(PROBE.samples))
    handle.remove()
    middle = next(one for one in case.scores.scores if one.operator == "mid_block")
    changes = []
    with torch.no_grad():
        for arguments, options in calls:
            before = case.denoiser(*arguments, **options)["sample"]
            with modified(case.denoiser, [middle.candidate.removal]):
                after = case.denoiser(*arguments, **options)["sample"]
            changes.append(((before - after).double().numpy() ** 2).mean())
    alone = Case(case.pipeline, case.scores.replace(scores=(middle,)))
    assert output_losses(alone) == pytest.approx([np.mean(changes)], rel=1e-4)


@pytest.mark.parametrize("name", sorted(set(CRITERIA) - {"output loss"}))
def test_a_failed_modification_is_in_no_plan(case: Case, name: str) -> None:
    scores = tuple(one.replace(score=math.inf) if one.operator == "mid_block" else one for one in case.scores.scores)
    plan = CRITERIA[name](Case(case.pipeline, case.scores.replace(scores=scores)))(CUT)
    assert "mid_block" not in [one.operator for one in plan.removed]
