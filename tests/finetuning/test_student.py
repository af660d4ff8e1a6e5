"""The network while it is trained, and what it is afterwards."""

import copy

import pytest
import torch
from diffusers import DiffusionPipeline

from ldpruner.errors import FinetuningError
from ldpruner.finetuning.accelerator import prepare_accelerator
from ldpruner.finetuning.student import Student
from tests.finetuning.conftest import short


def student(pipeline: DiffusionPipeline, **settings: object) -> Student:
    training = short(**settings)
    return Student(pipeline.unet, training, prepare_accelerator(training, torch.device("cpu")))


@pytest.mark.parametrize("settings", [{}, {"adapter": "lora", "rank": 2}], ids=["all", "lora"])
def test_a_network_is_trained_in_full_precision_and_shipped_in_its_own(
    fresh: DiffusionPipeline, settings: dict[str, object]
) -> None:
    fresh.unet.half()
    one = student(fresh, **settings)
    trained = [weight for weight in one.trained.parameters() if weight.requires_grad]
    assert {weight.dtype for weight in trained} == {torch.float32}
    with one.in_its_precision():
        assert {weight.dtype for weight in trained} == {torch.float16}
    assert {weight.dtype for weight in trained} == {torch.float32}
    one.finish(copy.deepcopy(fresh.unet))
    assert {weight.dtype for weight in fresh.unet.parameters()} == {torch.float16}
    assert not getattr(fresh.unet, "peft_config", None)


def test_a_weak_model_is_the_network_before_training(fresh: DiffusionPipeline) -> None:
    one = student(fresh, autoguidance_scale=1.0)
    assert one.weak_model is not None
    with torch.no_grad():
        next(one.trained.parameters()).add_(1)
    pairs = zip(one.weak_model.parameters(), one.trained.parameters(), strict=True)
    assert [torch.equal(*pair) for pair in pairs].count(False) == 1


def test_a_network_without_checkpointing_says_so(fresh: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(fresh.unet), "_supports_gradient_checkpointing", False)
    with pytest.raises(FinetuningError, match=r"gradient_checkpointing=True: .*; leave it out"):
        student(fresh, gradient_checkpointing=True)
