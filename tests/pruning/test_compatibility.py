"""A plan applies wherever its operators exist, as large as they were."""

import copy
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    DiffusionPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)

import ldpruner
from ldpruner.errors import DenoiserNotFound, OperatorNotFound, PlanMismatch
from ldpruner.operators.discovery import Candidate, Removal
from ldpruner.pipelines.fingerprints import architecture, count_parameters
from ldpruner.pruning.compatibility import check_plan, latency_note
from ldpruner.selection.plan import PlannedRemoval


def sized(candidate: Candidate) -> PlannedRemoval:
    """A removal as `select` records it."""
    return PlannedRemoval(removal=candidate.removal, parameters=candidate.parameters)


@pytest.fixture(scope="module")
def plan(tiny_text: DiffusionPipeline) -> ldpruner.Plan:
    """A plan of the U-Net of a text-to-image pipeline, as `select` makes them."""
    names = ("mid_block.attentions.0", "down_blocks.0.resnets.0.conv1", "up_blocks.1.resnets.0")
    operators = [operator for operator in ldpruner.find_operators(tiny_text) if operator.name in names]
    assert len(operators) == len(names)
    removed = tuple(sized(operator.candidates[0]) for operator in operators)
    return ldpruner.Plan(removed=removed, component="unet", architecture=architecture(tiny_text.unet))


def variant(pipeline: Any, **changes: Any) -> UNet2DConditionModel:
    """A U-Net with another configuration and other weights."""
    return UNet2DConditionModel.from_config(pipeline.unet.config, **changes).eval()


def with_unet(pipeline: Any, unet: UNet2DConditionModel) -> Any:
    other = copy.copy(pipeline)
    other.register_modules(unet=unet)
    return other


@pytest.mark.case(number=51)
def test_a_plan_applies_to_the_inpainting_unet_with_nine_channels(
    tiny_text: DiffusionPipeline, plan: ldpruner.Plan
) -> None:
    components = {**tiny_text.components, "unet": variant(tiny_text, in_channels=9)}
    inpainting = StableDiffusionInpaintPipeline(**components, requires_safety_checker=False)
    pruned = ldpruner.prune(inpainting, plan)
    removed = sum(planned.parameters or 0 for planned in plan.removed)
    assert count_parameters(pruned.unet) == count_parameters(inpainting.unet) - removed
    picture = torch.zeros(1, 3, 16, 16)
    call = {"prompt": "a cat", "image": picture, "mask_image": picture[:, :1], "num_inference_steps": 2}
    (image,) = pruned(**call, height=16, width=16, output_type="np").images
    assert image.shape == (16, 16, 3)


@pytest.mark.case(number=51)
def test_a_plan_applies_to_a_pipeline_with_a_controlnet(tiny_text: DiffusionPipeline, plan: ldpruner.Plan) -> None:
    control = ControlNetModel.from_unet(tiny_text.unet, conditioning_embedding_out_channels=(16, 32))
    controlled = StableDiffusionControlNetPipeline(
        **tiny_text.components, controlnet=control, requires_safety_checker=False
    )
    pruned = ldpruner.prune(controlled, plan)
    assert pruned.controlnet is control
    assert count_parameters(pruned.unet) == count_parameters(ldpruner.prune(tiny_text, plan).unet)


@pytest.mark.case(number=51)
def test_a_class_of_another_name_with_the_same_operators_is_pruned(
    tiny_text: DiffusionPipeline, plan: ldpruner.Plan
) -> None:
    class Variant(UNet2DConditionModel):
        pass

    other = with_unet(tiny_text, Variant.from_config(tiny_text.unet.config, out_channels=8).eval())
    assert check_plan(other, plan)[:2] == ("unet", other.unet)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"cross_attention_dim": 24}, "removing 'mid_block.attentions.0' takes"),
        ({"layers_per_block": 2}, "'down_blocks.0.resnets' has 1 blocks there and 2 here"),
        ({"mid_block_type": None}, "it has no 'mid_block.attentions.0'"),
    ],
)
def test_an_operator_that_differs_is_named_with_both_networks(
    tiny_text: DiffusionPipeline, plan: ldpruner.Plan, changes: dict[str, Any], problem: str
) -> None:
    other = with_unet(tiny_text, variant(tiny_text, **changes))
    with pytest.raises(PlanMismatch) as caught:
        ldpruner.prune(other, plan)
    message = str(caught.value)
    assert problem in message
    assert f"a UNet2DConditionModel of {count_parameters(tiny_text.unet):,} parameters" in message
    assert f"{count_parameters(other.unet):,}" in message
    assert message.endswith("score this pipeline and select again")


def test_a_plan_without_sizes_needs_the_same_network(tiny_text: DiffusionPipeline, plan: ldpruner.Plan) -> None:
    old = plan.replace(removed=tuple(planned.replace(parameters=None) for planned in plan.removed))
    assert check_plan(tiny_text, old)[0] == "unet"
    with pytest.raises(PlanMismatch, match="does not say how large"):
        check_plan(with_unet(tiny_text, variant(tiny_text, in_channels=9)), old)


def test_a_plan_without_an_architecture_goes_by_names(tiny_text: DiffusionPipeline, plan: ldpruner.Plan) -> None:
    other = with_unet(tiny_text, variant(tiny_text, cross_attention_dim=24))
    assert check_plan(other, plan.replace(architecture=None))[0] == "unet"


def of_names(*operators: str) -> ldpruner.Plan:
    removals = [Removal(operator=name, modification="identity") for name in operators]
    return ldpruner.Plan(removed=tuple(PlannedRemoval(removal=removal) for removal in removals))


def fail(*_: object, **__: object) -> None:
    raise RuntimeError("called")


@pytest.fixture
def unrunnable(tiny_text: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> DiffusionPipeline:
    """A pipeline whose call fails."""
    monkeypatch.setattr(type(tiny_text), "__call__", fail)
    return tiny_text


@pytest.mark.case(number=51)
def test_a_plan_by_hand_takes_the_sole_network_that_has_its_operators_without_a_run(
    unrunnable: DiffusionPipeline,
) -> None:
    assert check_plan(unrunnable, of_names("mid_block.attentions.0"))[0] == "unet"
    assert check_plan(unrunnable, of_names("encoder.mid_block"))[0] == "vae"


@pytest.mark.case(number=51)
def test_only_where_several_networks_have_the_operators_the_pipeline_is_run(
    tiny: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_plan(tiny, of_names("conv_act"))[0] == "unet"
    two = copy.copy(tiny)
    two.register_modules(vqvae=copy.deepcopy(tiny.unet))
    assert check_plan(two, of_names("conv_act"))[0] == "unet"  # which the pipeline calls
    monkeypatch.setattr(type(tiny), "__call__", fail)
    with pytest.raises(DenoiserNotFound):
        check_plan(two, of_names("conv_act"))


def test_an_operator_that_no_network_has_is_named_without_a_run(unrunnable: DiffusionPipeline) -> None:
    with pytest.raises(OperatorNotFound, match=r"'mid_block.resnets.7'; nearest: mid_block.resnets.1"):
        check_plan(unrunnable, of_names("mid_block.resnets.7", "mid_block.resnets.0"))
    with pytest.raises(OperatorNotFound, match="'colour'"):
        check_plan(unrunnable, of_names("colour"))


def test_a_note_says_where_latencies_were_measured(tiny: DiffusionPipeline, scores: ldpruner.Scores) -> None:
    timed = ldpruner.select(scores, ldpruner.Budget(latency=0.8))
    assert timed.machine is not None
    elsewhere = timed.replace(machine=timed.machine.replace(device="NVIDIA H200", threads=None))
    assert latency_note(tiny.unet, timed) == ""
    assert "NVIDIA H200" in latency_note(tiny.unet, elsewhere)
    assert latency_note(copy.deepcopy(tiny.unet).to("meta"), elsewhere) == ""
    assert latency_note(tiny.unet, elsewhere.replace(budget=ldpruner.Budget(parameters=0.8))) == ""
