"""The rivals of the benchmark: what each of them takes an operator, or a channel, to be worth."""

import copy
import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.nn.functional import mse_loss

import ldpruner
from benchmarks.channels import (
    Examples,
    channel_pruned,
    denoising_gradients,
    to_latency,
    until_small,
)
from benchmarks.criteria import RIVALS, Case, Planner, block_influences, hand_rule, hand_steps, output_losses
from ldpruner.errors import BudgetError
from ldpruner.operators.discovery import Candidate, denoiser_macs
from ldpruner.operators.patching import modified
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.fingerprints import architecture, count_parameters
from ldpruner.pipelines.sampling import draw_latents
from ldpruner.profiling.costs import Costs
from ldpruner.scoring.results import Savings, Score, Scores

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
    return {name: rival(case) for name, rival in RIVALS.items()}


@pytest.fixture(scope="module")
def examples() -> Examples:
    return Examples(torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)))


def unscored(pipeline: DiffusionPipeline) -> Case:
    """A case whose scores are the places of the operators, and where time goes by MACs: the same on every machine."""
    operators, denoiser = ldpruner.find_operators(pipeline), find_denoiser(pipeline)
    size, macs = count_parameters(denoiser.module), denoiser_macs(denoiser)
    pairs = [(one, candidate) for one in operators for candidate in one.candidates]
    scores = Scores(
        component=denoiser.component,
        architecture=architecture(denoiser.module),
        probe=PROBE,
        metric="mean_std",
        costs=Costs(parameters=size, macs=macs, latency_ms=macs, denoiser_ms=macs, memory=8 * size),
        denoiser_calls=1,
        scores=tuple(score(one, candidate, float(place)) for place, (one, candidate) in enumerate(pairs)),
    )
    return Case(pipeline, scores)


def score(operator: ldpruner.Operator, candidate: Candidate, value: float) -> Score:
    size, macs = candidate.parameters, candidate.macs
    return Score(
        operator=operator.name,
        kind=operator.kind,
        modification=candidate.modification,
        score=value,
        samples=1,
        savings=Savings(parameters=size, macs=macs, latency_ms=macs, memory=4 * size),
        candidate=candidate,
    )


def names(steps: Sequence[Sequence[Score]]) -> list[str]:
    """The steps of the hand rule, written short."""
    return [" + ".join(one.operator.replace("_blocks", "") for one in step) for step in steps]


def pair(level: str, place: int) -> str:
    return f"{level}.resnets.{place} + {level}.attentions.{place}"


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_meets_the_budget_and_its_plan_prunes(case: Case, planners: dict[str, Planner], name: str) -> None:
    plan = planners[name](CUT)
    assert plan.predicted is not None
    assert plan.predicted.latency <= 1 - CUT + 1e-9
    pruned = ldpruner.prune(case.pipeline, plan)
    assert count_parameters(pruned.unet) == pytest.approx(
        plan.predicted.parameters * count_parameters(case.denoiser), abs=1
    )
    assert draw_latents(pruned, PROBE, [0]).shape == draw_latents(case.pipeline, PROBE, [0]).shape


def test_no_rival_changes_the_denoiser(case: Case, planners: dict[str, Planner]) -> None:
    assert planners
    fresh = ldpruner.load("zoo:digits")
    assert architecture(case.denoiser) == architecture(fresh.unet)
    assert torch.equal(draw_latents(case.pipeline, PROBE, [0]), draw_latents(fresh, PROBE, [0]))
    assert not any(module._forward_hooks for module in case.denoiser.modules())


def test_random_plans_follow_their_seed(case: Case) -> None:
    first, again, other = (RIVALS["random"](Case(case.pipeline, case.scores, seed))(CUT) for seed in (1, 1, 2))
    assert first.removed == again.removed != other.removed


def test_the_fewest_parameters_go_first_and_no_activation(case: Case) -> None:
    removed = RIVALS["fewest parameters"](case)(0.01).removed
    sizes = {one.operator: one.candidate.parameters for one in case.scores.scores}
    assert min(sizes[one.operator] for one in removed) == min(size for size in sizes.values() if size)
    assert [one.score for one in removed] == [sizes[one.operator] for one in removed]


def test_the_hand_rule_takes_inner_pairs_then_the_middle_then_the_deepest_level() -> None:
    steps = names(hand_steps(unscored(ldpruner.load("zoo:satellite")).scores.scores))
    assert steps == [
        *(pair("down.2", 1), pair("up.0", 1), pair("down.1", 1), pair("up.1", 1)),
        *("down.0.resnets.1", "up.2.resnets.1"),
        "mid_block",
        *(pair("down.2", 0), pair("up.0", 0), pair("up.0", 2)),
        *(pair("down.1", 0), pair("up.1", 0), pair("up.1", 2)),
        *("down.0.resnets.0", "up.2.resnets.0", "up.2.resnets.2"),
    ]


@pytest.mark.parametrize("name", ["digits", "emoji"])
def test_with_one_layer_for_each_block_the_hand_rule_begins_with_the_middle(name: str) -> None:
    steps = names(hand_steps(unscored(ldpruner.load(f"zoo:{name}")).scores.scores))
    assert steps == [
        "mid_block",
        *(pair("down.2", 0), pair("up.0", 0), pair("up.0", 1)),
        *(pair("down.1", 0), pair("up.1", 0), pair("up.1", 1)),
        *("down.0.resnets.0", "up.2.resnets.0", "up.2.resnets.1"),
    ]


def test_the_hand_rule_stops_where_the_budget_is_met(case: Case) -> None:
    plan = hand_rule(case)(0.01)
    assert [one.operator for one in plan.removed] == ["mid_block"]


def test_the_hand_rule_says_what_it_cannot_reach(case: Case) -> None:
    with pytest.raises(BudgetError, match=r"latency=0\.01 cannot be reached by hand rule: all that it removes leaves"):
        hand_rule(case)(0.99)


def test_block_influence_is_one_minus_the_cosine_of_input_and_output(case: Case) -> None:
    block = "mid_block.resnets.0"
    turned: list[np.ndarray] = []

    def watch(_: nn.Module, arguments: Any, result: torch.Tensor) -> None:
        given, made = (one.double().numpy() for one in (arguments[0], result))
        norms = np.sqrt((given**2).sum(axis=1)) * np.sqrt((made**2).sum(axis=1))
        turned.append(1 - (given * made).sum(axis=1) / norms)

    handle = case.denoiser.get_submodule(block).register_forward_hook(watch)
    for index in range(PROBE.samples):
        draw_latents(case.pipeline, PROBE, [index])
    handle.remove()
    assert block_influences(case)[block] == pytest.approx(np.mean(turned), rel=1e-4)


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
    draw_latents(case.pipeline, PROBE, range(PROBE.samples))
    handle.remove()
    middle = next(one for one in case.scores.scores if one.operator == "mid_block")
    changes = []
    with torch.no_grad():
        for arguments, options in calls:
            before = case.denoiser(*arguments, **options)["sample"]
            with modified(case.denoiser, [middle.candidate.removal]):
                after = case.denoiser(*arguments, **options)["sample"]
            changes.append(((before - after).double().numpy() ** 2).mean())
    alone = Case(case.pipeline, case.scores.model_copy(update={"scores": (middle,)}))
    assert output_losses(alone) == pytest.approx([np.mean(changes)], rel=1e-4)


@pytest.mark.parametrize("name", sorted(set(RIVALS) - {"output loss"}))
def test_what_cannot_be_removed_stays_out_of_every_plan(case: Case, name: str) -> None:
    scores = tuple(
        one.model_copy(update={"score": math.inf}) if one.operator == "mid_block" else one
        for one in case.scores.scores
    )
    plan = RIVALS[name](Case(case.pipeline, case.scores.model_copy(update={"scores": scores})))(CUT)
    assert "mid_block" not in [one.operator for one in plan.removed]


@pytest.mark.parametrize("name", ["digits", "emoji"])
def test_a_narrowed_pipeline_runs_with_fewer_parameters(name: str) -> None:
    pipeline = ldpruner.load(f"zoo:{name}")
    pruned = channel_pruned(pipeline, 0.3)
    assert 0.4 < count_parameters(pruned.unet) / count_parameters(pipeline.unet) < 0.6
    drawn = draw_latents(pruned, PROBE, range(2))
    assert drawn.shape == draw_latents(pipeline, PROBE, range(2)).shape
    assert drawn.isfinite().all()
    assert pruned.unet is not pipeline.unet
    assert pruned.scheduler is not pipeline.scheduler
    assert all(weight.grad is None for weight in pruned.unet.parameters())


def test_what_is_kept_of_a_narrowed_norm_is_whole_groups(digits: DiffusionPipeline) -> None:
    pruned = channel_pruned(digits, 0.5).unet
    for name, before in digits.unet.named_modules():
        if isinstance(before, nn.GroupNorm):
            after = pruned.get_submodule(name)
            assert (after.num_groups, after.num_channels) == (before.num_groups // 2, before.num_channels // 2)


def test_the_channels_of_least_magnitude_go(digits: DiffusionPipeline) -> None:
    given, name = copy.copy(digits), "mid_block.resnets.0.conv1"
    network = copy.deepcopy(digits.unet)
    weight = network.get_submodule(name).weight
    with torch.no_grad():  # the first of 16 groups of 10 channels is made small wherever it occurs
        weight[:10] *= 1e-3
        network.get_submodule("mid_block.resnets.0.conv2").weight[:, :10] *= 1e-3
        network.get_submodule("mid_block.resnets.0.time_emb_proj").weight[:10] *= 1e-3
    given.register_modules(unet=network)
    left = channel_pruned(given, 1 / 16).unet.get_submodule(name).weight
    assert len(left) == 150
    # of its inputs, too, some are gone
    assert left.abs().amin(dim=(1, 2, 3)).shape == (150,)
    assert left.square().sum(dim=(1, 2, 3)).min() > weight[:10].square().sum(dim=(1, 2, 3)).max()


def test_gradients_are_those_of_the_denoising_loss(digits: DiffusionPipeline, examples: Examples) -> None:
    found = denoising_gradients(digits, examples, threshold=0, levels=2)
    network, generator = copy.deepcopy(digits.unet), torch.Generator().manual_seed(0)
    for level in (0, 999):
        kept = float(digits.scheduler.alphas_cumprod[level])
        noise = torch.randn(examples.latents.shape, generator=generator)
        noisy = math.sqrt(kept) * examples.latents + math.sqrt(1 - kept) * noise
        velocity = math.sqrt(kept) * noise - math.sqrt(1 - kept) * examples.latents
        mse_loss(network(noisy, torch.tensor([level] * 2)).sample, velocity).backward()
    for name, weight in network.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_losses_count_until_one_is_small_beside_the_largest() -> None:
    losses = list(torch.tensor([0.5, 1.0, 0.06, 0.04, 0.9]))
    assert list(until_small(losses, 0.05)) == losses[:3]
    assert list(until_small(losses, 0)) == losses


def test_gradients_choose_other_channels_than_magnitude(digits: DiffusionPipeline, examples: Examples) -> None:
    gradients = denoising_gradients(digits, examples, levels=2)
    taylor, magnitude = channel_pruned(digits, 0.3, gradients), channel_pruned(digits, 0.3)
    assert count_parameters(taylor.unet) == count_parameters(magnitude.unet)
    assert not torch.equal(draw_latents(taylor, PROBE, [0]), draw_latents(magnitude, PROBE, [0]))


def size_left(original: DiffusionPipeline) -> Callable[[DiffusionPipeline], float]:
    """Stands in for a measured latency."""
    return lambda pruned: count_parameters(pruned.unet) / count_parameters(original.unet)


def test_the_search_ends_at_or_just_below_what_is_wanted(digits: DiffusionPipeline) -> None:
    reached = to_latency(functools.partial(channel_pruned, digits), size_left(digits), 0.5)
    assert 0.45 < reached.latency <= 0.5
    assert size_left(digits)(reached.pipeline) == reached.latency


def test_the_search_gives_the_fastest_where_none_is_enough(digits: DiffusionPipeline) -> None:
    reached = to_latency(functools.partial(channel_pruned, digits), size_left(digits), 0.001)
    assert reached.ratio == 7 / 8
    assert reached.latency > 0.001


def test_the_search_measures_few_pipelines(digits: DiffusionPipeline) -> None:
    ratios: list[float] = []

    def narrowed(ratio: float) -> DiffusionPipeline:
        ratios.append(ratio)
        return digits

    reached = to_latency(narrowed, lambda _: 1 - ratios[-1] ** 2, 0.77)
    assert len(ratios) <= 8
    assert 0.77 * 0.98 <= reached.latency <= 0.77


def test_without_torch_pruning_the_error_says_what_to_install(
    digits: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ImportError, match="pip install torch-pruning"):
        channel_pruned(digits, 0.3)
