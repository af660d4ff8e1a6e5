"""Distillation: the teacher's targets, autoguidance, and the weights of the losses."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from torch import Tensor

import ldpruner
from ldpruner.errors import FinetuningError
from ldpruner.finetuning.distillation import Distillation, DistillationLoss, prepare_distillation
from ldpruner.pipelines.running import networks
from tests.families import FAMILIES
from tests.finetuning.conftest import PROBE, short

OUTPUT_ONLY = {"task_loss_weight": 0.0, "feature_kd_weight": 0.0}


@pytest.fixture(scope="module")
def distillation(tiny: DiffusionPipeline) -> Distillation:
    return prepare_distillation(tiny, None, PROBE, None, None)


def validation_loss(
    distillation: Distillation, student: torch.nn.Module, settings: Mapping[str, Any], weak: bool = True
) -> float:
    training = short(**settings)
    weak_model = copy.deepcopy(student) if weak and training.autoguidance_scale else None
    loss = DistillationLoss(distillation, student, weak_model, training, Accelerator(cpu=True))
    losses = loss.validation_losses(student, torch.Generator().manual_seed(0))
    return float(torch.stack(list(losses)).mean())


@pytest.mark.extensive
@torch.no_grad()
def test_autoguidance_moves_the_target_away_from_the_weak_model(
    distillation: Distillation, pruned: DiffusionPipeline
) -> None:
    student = networks(pruned)["unet"]
    plain, guided = (
        validation_loss(distillation, student, {**OUTPUT_ONLY, "autoguidance_scale": scale}) for scale in (0.0, 1.5)
    )
    assert guided == pytest.approx((1 + 1.5) ** 2 * plain, rel=1e-4)
    low, high = (
        validation_loss(
            distillation, student, {**OUTPUT_ONLY, "autoguidance_scale": 1.5, "guidance_interval": interval}
        )
        for interval in ((0.0, 0.3), (0.3, 1.0))
    )
    assert plain < min(low, high)
    assert low + high == pytest.approx(plain + guided)


@torch.no_grad()
def test_a_copy_of_the_teacher_has_only_the_task_to_learn(distillation: Distillation) -> None:
    student = copy.deepcopy(distillation.teacher)
    assert validation_loss(distillation, student, {"task_loss_weight": 0.0}) == pytest.approx(0, abs=1e-10)
    task = validation_loss(distillation, student, {"output_kd_weight": 0.0, "feature_kd_weight": 0.0})
    assert validation_loss(distillation, student, {}) == pytest.approx(task)


@torch.no_grad()
@pytest.mark.parametrize(("prediction", "is_equal"), [("epsilon", False), ("v_prediction", True)])
def test_snr_weights_change_an_epsilon_loss_only(
    tiny: DiffusionPipeline, pruned: DiffusionPipeline, prediction: str, is_equal: bool
) -> None:
    components: dict[str, Any] = tiny.components
    scheduler = components["scheduler"].from_config(components["scheduler"].config, prediction_type=prediction)
    distillation = prepare_distillation(type(tiny)(**{**components, "scheduler": scheduler}), None, PROBE, None, None)
    student = networks(pruned)["unet"]
    weighted, plain = (
        validation_loss(distillation, student, {"snr_weighting": weighting}) for weighting in (True, False)
    )
    assert (weighted == plain) == is_equal


class Negated(torch.nn.Module):
    """A denoiser with the opposite output."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        return (-self.inner(*args, **kwargs)[0],)


def test_a_negated_output_is_noticed() -> None:
    distillation = prepare_distillation(ldpruner.load("zoo:satellite"), None, PROBE, None, None)
    assert distillation.sign == 1
    assert replace(distillation, teacher=Negated(distillation.teacher)).validate_teacher("negated").sign == -1


def test_one_example_is_too_few_to_hold_one_out(tiny: DiffusionPipeline) -> None:
    distillation = prepare_distillation(tiny, None, ldpruner.Probe(samples=1, steps=3), None, None)
    with pytest.raises(FinetuningError, match="give at least 2"):
        DistillationLoss(distillation, distillation.teacher, None, short(), Accelerator(cpu=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("component", "low", "high"), [("transformer", 0.9, 1.0), ("transformer_2", 0.0, 0.9)])
def test_a_denoiser_is_trained_on_its_own_noise_levels(component: str, low: float, high: float) -> None:
    family = FAMILIES["wan-two-denoisers-2"]  # the second one runs below 0.9
    probe = ldpruner.Probe(samples=2, steps=3, prompts=family.prompts, call=dict(family.call))
    distillation = prepare_distillation(family.pipeline(), None, probe, component, None)
    levels = distillation.levels(1000, torch.Generator().manual_seed(0))
    assert float(levels.min()) == pytest.approx(low, abs=0.01)
    assert float(levels.max()) == pytest.approx(high, abs=0.01)
