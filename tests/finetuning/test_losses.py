"""Losses on predictions and on features."""

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from ldpruner.finetuning.losses import feature_loss, features_of, latent_loss, stages
from ldpruner.operators.discovery import Removal
from ldpruner.pipelines.running import networks
from ldpruner.pruning.surgery import prune
from ldpruner.selection.plan import Plan, PlannedRemoval
from tests.families import FAMILIES


def test_losses_agree_with_their_formulas_in_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 3, 4, 8, 8, generator=generator).unbind(0)
    x, y = teacher.double().numpy(), student.double().numpy()
    errors, sizes = ((x - y) ** 2).mean((1, 2, 3)), (x**2).mean((1, 2, 3))
    weights = torch.tensor([1.0, 2.0, 0.5])
    assert float(latent_loss(student, teacher, weights)) == pytest.approx((weights.numpy() * errors).mean())
    features = {"a": teacher, "b": teacher, "other shape": teacher, "removed": teacher}
    others = {"a": student, "b": student, "other shape": student[:, :2]}
    for normalize, terms in ((False, errors), (True, errors / sizes)):
        loss = float(feature_loss(features, others, normalize=normalize))
        assert loss == pytest.approx(2 * np.mean(terms), rel=1e-5)
    assert feature_loss({}, {}, normalize=True) == 0


def test_features_are_recorded_through_a_wrapper(tiny: DiffusionPipeline, pruned: DiffusionPipeline) -> None:
    teacher, student = networks(tiny)["unet"], networks(pruned)["unet"]
    names = stages(teacher, student)
    assert set(names) <= {"down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"}
    wrapper = torch.nn.Sequential()
    wrapper.add_module("module", student)
    with features_of(student, names.values()) as features:
        wrapper.get_submodule("module")(torch.randn(1, 4, 8, 8), torch.tensor([3]))
        assert features.keys() == {(place, 0) for place in range(len(names))}
    assert not any(part._forward_hooks for part in student.modules())


def test_a_block_that_moved_up_is_compared_with_the_same_block_of_the_teacher() -> None:
    teacher = FAMILIES["flux"].pipeline()
    plan = Plan(
        removed=(
            PlannedRemoval(
                removal=Removal(
                    operator="transformer_blocks.0",
                    modification="identity",
                    source=("encoder_hidden_states", "hidden_states"),
                )
            ),
        ),
        component="transformer",
    )
    student = networks(prune(teacher, plan))["transformer"]
    names = stages(networks(teacher)["transformer"], student)
    assert names["transformer_blocks.1"] == "transformer_blocks.0"
    assert "transformer_blocks.0" not in names


def test_features_that_are_zero_have_a_finite_loss() -> None:
    features = {0: torch.zeros(2, 3)}
    assert float(feature_loss(features, {0: torch.zeros(2, 3)}, normalize=True)) == 0
    assert float(feature_loss(features, {0: torch.ones(2, 3)}, normalize=True)) == 1
