"""What was scored is what is removed, and its weights are gone."""

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
from ldpruner.pipelines.sampling import sample_latents
from tests.conftest import planned


@pytest.fixture(scope="module")
def plan(scores: ldpruner.Scores) -> ldpruner.Plan:
    """All three sizes of removals: single modules, shortcuts and whole blocks."""
    chosen = ldpruner.select(scores, ldpruner.Budget(parameters=0.6, macs=0.7))
    assert len(chosen.removed) > 3
    return chosen


def removals(plan: ldpruner.Plan) -> list[Removal]:
    return [planned_removal.removal for planned_removal in plan.removed]


def macs(pipeline: DiffusionPipeline) -> int:
    denoiser = find_denoiser(pipeline)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        denoiser()
    return int(counter.get_total_flops()) // 2 // denoiser.rows


def weights(pipeline: DiffusionPipeline) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in pipeline.unet.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_removed_weights_and_computation_are_gone_as_the_plan_says(
    tiny: DiffusionPipeline, plan: ldpruner.Plan
) -> None:
    pruned = ldpruner.prune(tiny, plan)
    assert plan.predicted is not None
    assert count_parameters(pruned.unet) == round(plan.predicted.parameters * count_parameters(tiny.unet))
    assert macs(pruned) == round(plan.predicted.macs * macs(tiny))
    assert count_parameters(pruned.unet) <= 0.6 * count_parameters(tiny.unet)


@pytest.mark.parametrize("fixture", ["tiny", "tiny_text", "tiny_transformer"])
def test_what_was_scored_is_what_is_removed(
    fixture: str, probe: ldpruner.Probe, request: pytest.FixtureRequest
) -> None:
    pipeline = request.getfixturevalue(fixture)
    denoiser = find_denoiser(pipeline)
    for operator in ldpruner.find_operators(pipeline)[4::20]:
        (candidate,) = operator.candidates
        plan = ldpruner.Plan(removed=(planned(candidate),))
        with modified(denoiser.module, [candidate.removal]):
            scored = sample_latents(pipeline, probe, [0])
        assert torch.equal(sample_latents(ldpruner.prune(pipeline, plan), probe, [0]), scored), operator.name


def test_a_pruned_pipeline_has_the_latents_of_the_modifications_of_its_plan(
    tiny: DiffusionPipeline, plan: ldpruner.Plan, probe: ldpruner.Probe
) -> None:
    with modified(tiny.unet, removals(plan)):
        expected = sample_latents(tiny, probe, range(3))
    pruned = ldpruner.prune(tiny, plan)
    assert torch.equal(sample_latents(pruned, probe, range(3)), expected)
    assert not torch.equal(sample_latents(tiny, probe, range(3)), expected)


def test_the_weights_that_stay_are_kept(tiny: DiffusionPipeline, plan: ldpruner.Plan) -> None:
    kept, original = ldpruner.prune(tiny, plan).unet.state_dict(), tiny.unet.state_dict()
    assert 0 < len(kept) < len(original)
    assert all(torch.equal(weight, original[name]) for name, weight in kept.items())


def test_the_original_stays_as_it_is(fresh: DiffusionPipeline, plan: ldpruner.Plan, probe: ldpruner.Probe) -> None:
    before, modules, classes = weights(fresh), list(fresh.unet.modules()), type(fresh.unet)
    config, latents = dict(fresh.config), sample_latents(fresh, probe, [0])
    scheduler = copy.deepcopy(fresh.scheduler.__dict__["num_inference_steps"])
    pruned = ldpruner.prune(fresh, plan)
    with torch.no_grad():
        for weight in pruned.unet.parameters():
            weight.zero_()
    pruned.scheduler.set_timesteps(50)
    assert same(weights(fresh), before)
    assert all(before is after for before, after in zip(modules, fresh.unet.modules(), strict=True))
    assert type(fresh.unet) is classes
    assert "removals" not in fresh.unet.config
    assert dict(fresh.config) == config
    assert fresh.scheduler.num_inference_steps == scheduler
    assert torch.equal(sample_latents(fresh, probe, [0]), latents)


def test_in_place_pruning_changes_the_pipeline_itself(
    fresh: DiffusionPipeline, plan: ldpruner.Plan, probe: ldpruner.Probe
) -> None:
    pruned = ldpruner.prune(fresh, plan)
    denoiser = fresh.unet
    assert ldpruner.prune_(fresh, plan) is fresh
    assert fresh.unet is denoiser
    assert same(weights(fresh), weights(pruned))
    assert torch.equal(sample_latents(fresh, probe, [0]), sample_latents(pruned, probe, [0]))


def test_a_pruned_pipeline_decodes_images(tiny: DiffusionPipeline, plan: ldpruner.Plan) -> None:
    images = ldpruner.prune(tiny, plan)(batch_size=2, num_inference_steps=1).images
    assert len(images) == 2


def test_a_pruned_pipeline_is_pruned_further(
    tiny: DiffusionPipeline, plan: ldpruner.Plan, probe: ldpruner.Probe
) -> None:
    pruned_once = ldpruner.prune(tiny, plan)
    operators = ldpruner.find_operators(pruned_once)
    gone = {removal.operator for removal in removals(plan)}
    assert gone.isdisjoint(operator.name for operator in operators)
    scores = ldpruner.score_operators(pruned_once, operators[:4], probe)
    further = ldpruner.select(scores, ldpruner.Budget(operators=2))
    twice = ldpruner.prune(pruned_once, further)
    assert further.predicted is not None
    left = round(further.predicted.parameters * count_parameters(pruned_once.unet))
    assert count_parameters(twice.unet) == left <= count_parameters(pruned_once.unet)
    with modified(pruned_once.unet, removals(further)):
        expected = sample_latents(pruned_once, probe, [0])
    assert torch.equal(sample_latents(twice, probe, [0]), expected)
    native = twice.unet.config["_removed"]
    assert native == ["down_blocks.1.attentions"]  # its only one
    assert len(twice.unet.config["removals"]) + len(native) == len(plan.removed) + 2


def test_a_plan_for_one_checkpoint_applies_to_another_of_the_same_architecture(
    fresh: DiffusionPipeline, plan: ldpruner.Plan
) -> None:
    with torch.no_grad():
        for weight in fresh.unet.parameters():
            weight.add_(0.01)
    assert plan.predicted is not None
    expected = round(plan.predicted.parameters * count_parameters(fresh.unet))
    assert count_parameters(ldpruner.prune(fresh, plan).unet) == expected


def identity_plan(*operators: str) -> ldpruner.Plan:
    removals = [Removal(operator=name, modification="identity") for name in operators]
    return ldpruner.Plan(removed=tuple(map(planned, removals)))


def assert_unchanged(pipeline: DiffusionPipeline, plan: ldpruner.Plan, error: type[LdPrunerError]) -> str:
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
    other = plan.architecture.replace(parameters=123_456, digest="0")
    first, *others = plan.removed
    removed = (first.replace(parameters=987_654), *others)
    message = assert_unchanged(fresh, plan.replace(architecture=other, removed=removed), PlanMismatch)
    assert f"removing {first.operator!r} takes 987,654 parameters there" in message
    assert "123,456" in message
    assert f"{count_parameters(fresh.unet):,}" in message


def test_a_plan_is_not_applied_twice(tiny: DiffusionPipeline, plan: ldpruner.Plan) -> None:
    pruned = ldpruner.prune(tiny, plan)
    assert architecture(pruned.unet) != plan.architecture
    with pytest.raises(PlanMismatch):
        ldpruner.prune(pruned, plan)


def test_a_plan_for_another_component_is_refused(fresh: DiffusionPipeline) -> None:
    message = assert_unchanged(fresh, ldpruner.Plan(removed=(), component="transformer"), PlanMismatch)
    assert "'transformer'" in message


def test_an_unknown_operator_in_a_plan_is_refused(fresh: DiffusionPipeline) -> None:
    plan = identity_plan("mid_block.resnets.0", "mid_block.resnets.7")
    message = assert_unchanged(fresh, plan, OperatorNotFound)
    assert "'mid_block.resnets.7'" in message
    assert "mid_block.resnets.1" in message


def test_a_plan_whose_operators_overlap_is_refused(fresh: DiffusionPipeline) -> None:
    message = assert_unchanged(fresh, identity_plan("mid_block", "mid_block.resnets.0"), PlanMismatch)
    assert "'mid_block.resnets.0'" in message


@pytest.mark.case(number=8)
def test_a_plan_that_was_chosen_on_another_machine_says_so(
    tiny: DiffusionPipeline, scores: ldpruner.Scores, caplog: pytest.LogCaptureFixture
) -> None:
    plan = ldpruner.select(scores, ldpruner.Budget(latency=0.8))
    assert plan.machine is not None
    with caplog.at_level("WARNING"):
        ldpruner.prune(tiny, plan)
        assert caplog.messages == []
        ldpruner.prune(tiny, plan.replace(machine=plan.machine.replace(device="NVIDIA H200", threads=None)))
    (message,) = caplog.messages
    assert "measured on NVIDIA H200 in float32; on cpu with" in message
