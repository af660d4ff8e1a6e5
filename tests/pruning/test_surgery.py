"""Surgery: what was scored is what is removed, and it is gone."""

import copy

import pytest
import torch
from diffusers import DiffusionPipeline
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import ldpruner
from ldpruner.errors import LdPrunerError, OperatorNotFound, PlanMismatch
from ldpruner.operators.discovery import Removal
from ldpruner.operators.patching import modified
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.fingerprints import architecture, count_parameters
from ldpruner.pipelines.sampling import draw_latents
from ldpruner.selection.plan import PlannedRemoval


@pytest.fixture(scope="module")
def plan(scores: ldpruner.Scores) -> ldpruner.Plan:
    """All three sizes of removals: single modules, shortcuts and whole blocks."""
    chosen = ldpruner.select(scores, ldpruner.Budget(parameters=0.6, macs=0.7))
    assert len(chosen.removed) > 3
    return chosen


def removals(plan: ldpruner.Plan) -> list[Removal]:
    return [one.removal for one in plan.removed]


def macs(pipeline: DiffusionPipeline) -> int:
    denoiser = find_denoiser(pipeline)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        denoiser()
    return int(counter.get_total_flops()) // 2 // denoiser.rows


def weights(pipeline: DiffusionPipeline) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in pipeline.unet.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_removed_weights_and_computation_are_gone_as_the_plan_says(
    tiny: DiffusionPipeline, plan: ldpruner.Plan
) -> None:
    pruned = ldpruner.prune(tiny, plan)
    assert plan.predicted is not None
    assert count_parameters(pruned.unet) == round(plan.predicted.parameters * count_parameters(tiny.unet))
    assert macs(pruned) == round(plan.predicted.macs * macs(tiny))
    assert count_parameters(pruned.unet) <= 0.6 * count_parameters(tiny.unet)


@pytest.mark.parametrize("fixture", ["tiny", "tiny_text", "tiny_transformer"])
def test_what_was_scored_is_what_is_removed_to_the_bit(
    fixture: str, probe: ldpruner.Probe, request: pytest.FixtureRequest
) -> None:
    pipeline = request.getfixturevalue(fixture)
    denoiser = find_denoiser(pipeline)
    for operator in ldpruner.find_operators(pipeline)[4::7]:
        (candidate,) = operator.candidates
        plan = ldpruner.Plan(removed=(PlannedRemoval(**candidate.removal.model_dump()),))
        with modified(denoiser.module, [candidate.removal]):
            scored = draw_latents(pipeline, probe, [0])
        assert torch.equal(draw_latents(ldpruner.prune(pipeline, plan), probe, [0]), scored), operator.name


def test_a_whole_plan_gives_the_latents_of_its_modifications_to_the_bit(
    tiny: DiffusionPipeline, plan: ldpruner.Plan, probe: ldpruner.Probe
) -> None:
    with modified(tiny.unet, removals(plan)):
        expected = draw_latents(tiny, probe, range(3))
    pruned = ldpruner.prune(tiny, plan)
    assert torch.equal(draw_latents(pruned, probe, range(3)), expected)
    assert not torch.equal(draw_latents(tiny, probe, range(3)), expected)


def test_the_weights_that_stay_are_kept(tiny: DiffusionPipeline, plan: ldpruner.Plan) -> None:
    kept, original = ldpruner.prune(tiny, plan).unet.state_dict(), tiny.unet.state_dict()
    assert 0 < len(kept) < len(original)
    assert all(torch.equal(weight, original[name]) for name, weight in kept.items())


def test_the_original_stays_as_it_is(fresh: DiffusionPipeline, plan: ldpruner.Plan, probe: ldpruner.Probe) -> None:
    before, modules, classes = weights(fresh), list(fresh.unet.modules()), type(fresh.unet)
    config, latents = dict(fresh.config), draw_latents(fresh, probe, [0])
    scheduler = copy.deepcopy(fresh.scheduler.__dict__["num_inference_steps"])
    pruned = ldpruner.prune(fresh, plan)
    with torch.no_grad():
        for weight in pruned.unet.parameters():
            weight.zero_()
    pruned.scheduler.set_timesteps(50)
    assert same(weights(fresh), before)
    assert all(one is other for one, other in zip(modules, fresh.unet.modules(), strict=True))
    assert type(fresh.unet) is classes
    assert "removals" not in fresh.unet.config
    assert dict(fresh.config) == config
    assert fresh.scheduler.num_inference_steps == scheduler
    assert torch.equal(draw_latents(fresh, probe, [0]), latents)


def test_in_place_pruning_changes_the_pipeline_itself(
    fresh: DiffusionPipeline, plan: ldpruner.Plan, probe: ldpruner.Probe
) -> None:
    pruned = ldpruner.prune(fresh, plan)
    denoiser = fresh.unet
    assert ldpruner.prune_(fresh, plan) is fresh
    assert fresh.unet is denoiser
    assert same(weights(fresh), weights(pruned))
    assert torch.equal(draw_latents(fresh, probe, [0]), draw_latents(pruned, probe, [0]))


def test_a_pruned_pipeline_decodes_images(tiny: DiffusionPipeline, plan: ldpruner.Plan) -> None:
    images = ldpruner.prune(tiny, plan)(batch_size=2, num_inference_steps=1).images
    assert len(images) == 2


def test_a_pruned_pipeline_is_pruned_further(
    tiny: DiffusionPipeline, plan: ldpruner.Plan, probe: ldpruner.Probe
) -> None:
    point_estimate = ldpruner.prune(tiny, plan)
    found = ldpruner.find_operators(point_estimate)
    gone = {one.operator for one in plan.removed}
    assert gone.isdisjoint(one.name for one in found)
    scores = ldpruner.score_operators(point_estimate, found[:8], probe)
    further = ldpruner.select(scores, ldpruner.Budget(operators=2))
    twice = ldpruner.prune(point_estimate, further)
    assert further.predicted is not None
    left = round(further.predicted.parameters * count_parameters(point_estimate.unet))
    assert count_parameters(twice.unet) == left <= count_parameters(point_estimate.unet)
    with modified(point_estimate.unet, removals(further)):
        expected = draw_latents(point_estimate, probe, [0])
    assert torch.equal(draw_latents(twice, probe, [0]), expected)
    assert len(twice.unet.config["removals"]) == len(plan.removed) + 2


def test_a_plan_for_one_checkpoint_applies_to_another_of_the_same_architecture(
    fresh: DiffusionPipeline, plan: ldpruner.Plan
) -> None:
    with torch.no_grad():
        for weight in fresh.unet.parameters():
            weight.add_(0.01)
    assert plan.predicted is not None
    expected = round(plan.predicted.parameters * count_parameters(fresh.unet))
    assert count_parameters(ldpruner.prune(fresh, plan).unet) == expected


def assert_untouched(pipeline: DiffusionPipeline, plan: ldpruner.Plan, error: type[LdPrunerError]) -> str:
    """Both ways of pruning refuse in one line, and nothing has changed."""
    before, messages = weights(pipeline), []
    for prune in (ldpruner.prune, ldpruner.prune_):
        with pytest.raises(error) as caught:
            prune(pipeline, plan)
        messages.append(str(caught.value))
        assert same(weights(pipeline), before)
        assert not type(pipeline.unet).__name__.startswith("Pruned")
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]
    return messages[0]


def test_a_plan_for_another_architecture_is_refused(fresh: DiffusionPipeline, plan: ldpruner.Plan) -> None:
    assert plan.architecture is not None
    other = plan.architecture.model_copy(update={"parameters": 123_456, "digest": "0"})
    message = assert_untouched(fresh, plan.model_copy(update={"architecture": other}), PlanMismatch)
    assert "123,456" in message
    assert f"{count_parameters(fresh.unet):,}" in message


def test_a_plan_is_not_applied_twice(tiny: DiffusionPipeline, plan: ldpruner.Plan) -> None:
    pruned = ldpruner.prune(tiny, plan)
    assert architecture(pruned.unet) != plan.architecture
    with pytest.raises(PlanMismatch):
        ldpruner.prune(pruned, plan)


def test_a_plan_for_another_component_is_refused(fresh: DiffusionPipeline) -> None:
    message = assert_untouched(fresh, ldpruner.Plan(removed=(), component="transformer"), PlanMismatch)
    assert "'transformer'" in message


def test_an_unknown_operator_in_a_plan_is_refused(fresh: DiffusionPipeline) -> None:
    removed = (
        PlannedRemoval(operator="mid_block.resnets.0", modification="identity"),
        PlannedRemoval(operator="mid_block.resnets.7", modification="identity"),
    )
    message = assert_untouched(fresh, ldpruner.Plan(removed=removed), OperatorNotFound)
    assert "'mid_block.resnets.7'" in message
    assert "mid_block.resnets.1" in message


def test_an_operator_inside_another_of_the_same_plan_changes_nothing_or_is_removed_with_it(
    fresh: DiffusionPipeline,
) -> None:
    removed = (
        PlannedRemoval(operator="mid_block", modification="identity"),
        PlannedRemoval(operator="mid_block.resnets.0", modification="identity"),
    )
    outer = ldpruner.prune(fresh, ldpruner.Plan(removed=removed[:1]))
    before = weights(fresh)
    try:
        ldpruner.prune_(fresh, ldpruner.Plan(removed=removed))
    except LdPrunerError:
        assert same(weights(fresh), before)
    else:
        assert same(weights(fresh), weights(outer))
