"""What of FSDP needs one process only; two processes train in test_trainer.py."""

import os

import pytest
import torch
from torch import nn

from ldpruner.errors import FinetuningError
from ldpruner.finetuning import Training
from ldpruner.finetuning.accelerator import prepare_accelerator
from ldpruner.finetuning.sharding import gather_, is_sharded, sharded_copy, wants_sharding


def test_one_process_shares_with_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert not wants_sharding()
    accelerator = prepare_accelerator(Training(), torch.device("cpu"))
    assert accelerator.distributed_type == "NO"
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert wants_sharding()


def test_deepspeed_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(FinetuningError, match="choose FSDP in `accelerate config`"):
        prepare_accelerator(Training(), torch.device("cpu"))


def test_what_is_trained_in_a_copy_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
    for name, value in address.items():
        monkeypatch.setenv(name, value)
    torch.distributed.init_process_group("gloo")
    try:
        network = nn.Module()
        network.blocks = nn.ModuleList([nn.Linear(3, 2), nn.Linear(2, 1)])
        network.outer = nn.BatchNorm1d(1)
        before = [weight.detach().clone() for weight in network.parameters()]
        copy = sharded_copy(network, prepare_accelerator(Training(), torch.device("cpu")))
        assert is_sharded(copy)
        assert not is_sharded(network)
        with torch.no_grad():
            for weight in copy.parameters():
                weight.add_(1)
        gather_(network, copy)
        for weight, old in zip(network.parameters(), before, strict=True):
            assert torch.equal(weight, old + 1)
    finally:
        torch.distributed.destroy_process_group()
