"""The devices of a training: what cannot be shared or reported is refused."""

import pytest
import torch

from ldpruner.errors import FinetuningError
from ldpruner.finetuning.accelerator import prepare_accelerator
from tests.finetuning.conftest import short

CPU = torch.device("cpu")


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(FinetuningError, match="choose a multiple of 3"):
        prepare_accelerator(short(gradient_accumulation_steps=3), CPU)


def test_a_missing_tracker_is_refused() -> None:
    with pytest.raises(FinetuningError, match="report_to"):
        prepare_accelerator(short(), CPU, report_to=["nothing"])
