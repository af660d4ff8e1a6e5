"""Training of the zoo's networks, with the trainer of `ldpruner.finetuning`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ldpruner.finetuning.accelerator import prepare_accelerator
from ldpruner.finetuning.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from ldpruner.finetuning import Training


@dataclass(frozen=True)
class Trained:
    """The network with its averaged weights, the loss of every step, and the seconds over all sittings."""

    module: nn.Module
    losses: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class Loss:
    """What a network is trained on.

    Attributes:
        sample: a random batch of a given size; on the CPU, so that it is the same for every device.
        value: the scalar loss of a network on the batch.
    """

    sample: Callable[[int, torch.Generator], Sequence[Tensor]]
    value: Callable[..., Tensor]


def train(module: nn.Module, loss: Loss, training: Training, checkpoint: Path, steps: int | None = None) -> Trained:
    """Trains `module` in place, from `checkpoint` where there is one.

    Args:
        module: the network, on the device where it is trained.
        loss: what it is trained on.
        training: how long, how fast.
        checkpoint: a file, which is written as training goes.
        steps: how many to take, a multiple of the checkpointing steps; all if None.
    """
    # channels_last is a fifth to a quarter faster on a CPU
    module = module.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    accelerator = prepare_accelerator(training, next(module.parameters()).device)

    def losses(module: nn.Module, generator: torch.Generator) -> Iterator[Tensor]:
        batch = [tensor.to(accelerator.device) for tensor in loss.sample(training.train_batch_size, generator)]
        with accelerator.autocast():
            yield loss.value(module, *batch)

    trainer = Trainer(module, losses, training, accelerator, checkpoint=checkpoint)
    iterator = iter(trainer)
    while trainer.state.step < (steps or training.max_train_steps):
        next(iterator)
    history = trainer.finish()
    return Trained(module.eval(), history.losses, trainer.state.seconds)
