"""A short training, and what the tests of finetuning share."""

from typing import Any

import pytest
from diffusers import DiffusionPipeline
from torch import Tensor

import ldpruner
from ldpruner.finetuning import Training
from ldpruner.pipelines.running import networks

PROBE = ldpruner.Probe(samples=8, steps=3)


def short(**changes: Any) -> Training:
    """Six steps on four examples each."""
    settings = {
        "max_train_steps": 6,
        "train_batch_size": 4,
        "task_loss_weight": 1.0,
        "lr_warmup_steps": 2,
        "validation_steps": 3,
        "checkpointing_steps": 2,
    }
    return Training(**(settings | changes))


def unet_weights(pipeline: DiffusionPipeline) -> list[Tensor]:
    return [weight.detach().clone() for weight in networks(pipeline)["unet"].parameters()]


@pytest.fixture
def pruned(tiny: DiffusionPipeline, scores: ldpruner.Scores) -> DiffusionPipeline:
    return ldpruner.prune(tiny, ldpruner.select(scores, ldpruner.Budget(parameters=0.6)))
