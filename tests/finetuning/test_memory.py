"""Memory is counted as it is used."""

from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

from ldpruner.finetuning.lora import add_lora_
from ldpruner.finetuning.memory import LiveBytes, training_memory

WIDTH, BATCH, LAYERS = 64, 32, 8
SQUARE, ROWS = 4 * WIDTH * WIDTH, 4 * BATCH * WIDTH  # bytes of a weight, and of an activation


def test_bytes_are_counted_while_tensors_are_alive() -> None:
    with LiveBytes() as live:
        first = torch.zeros(100)
        second = first + 1
        view = second[:10]
        del first
        assert (live.current, live.peak) == (400, 800)
        del second
        assert live.current == 400  # the view holds it
        del view
        assert live.current == 0


def summed(network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    total: torch.Tensor = network(inputs).sum()
    return total


def test_a_step_on_the_meta_device_counts_what_a_real_one_uses() -> None:
    counts = []
    for device in ("meta", "cpu"):
        network = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))).to(device)
        optimizer = torch.optim.AdamW(network.parameters())
        inputs = torch.ones(BATCH, WIDTH, device=device)
        loss = partial(summed, network, inputs)
        counts.append(training_memory(network, optimizer, loss, [inputs]))
    assert counts[0] == counts[1]
    assert counts[0].weights == counts[0].gradients == LAYERS * SQUARE
    assert 2 * LAYERS * SQUARE <= counts[0].optimizer <= 2 * LAYERS * SQUARE + LAYERS * 8
    assert counts[0].peak >= 4 * LAYERS * SQUARE


def test_checkpointing_and_a_lora_take_less() -> None:
    peaks = {}
    for kind in ("full", "checkpointed", "lora"):
        network = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))).to("meta")
        if kind == "lora":
            add_lora_(network, 2, seed=0)
        inputs = torch.ones(64 * BATCH, WIDTH, device="meta", requires_grad=kind == "checkpointed")

        def loss(network: nn.Sequential = network, inputs: torch.Tensor = inputs, kind: str = kind) -> torch.Tensor:
            if kind == "checkpointed":
                return checkpoint_sequential(network, 4, inputs, use_reentrant=False).square().sum()  # type: ignore[no-any-return]
            return network(inputs).square().sum()  # type: ignore[no-any-return]

        trained = [weight for weight in network.parameters() if weight.requires_grad]
        peaks[kind] = training_memory(network, torch.optim.AdamW(trained), loss, [inputs])
    assert peaks["checkpointed"].activations < 0.8 * peaks["full"].activations
    assert peaks["lora"].optimizer < 0.2 * peaks["full"].optimizer
