"""The state of a training run: weights, their moving average, the optimizer, and what happened so far."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ldpruner.errors import FinetuningError
from ldpruner.finetuning.checkpoints import optimizer_tensors, read_checkpoint, restore_optimizer_, write_checkpoint
from ldpruner.finetuning.settings import History, Training
from ldpruner.profiling.costs import device_of

FUSED = ("cpu", "cuda")  # devices on which torch has a fused AdamW
# after so many steps a slow average follows only every few: it is a pass over all weights
EAGER, PAUSE, SLOW = 100, 4, 0.9


class State:
    """What a checkpoint holds. The network is trained in full precision, whatever it ships in."""

    def __init__(self, module: nn.Module, training: Training) -> None:
        self.module, self.training = module.float().requires_grad_(True).eval(), training
        self.weights = list(module.parameters())
        # fused: all weights in one pass, which pays for the clipping and the average
        fused, decay = device_of(module).type in FUSED, training.adam_weight_decay
        self.optimizer = torch.optim.AdamW(self.weights, training.learning_rate, weight_decay=decay, fused=fused)
        self.average, self.best = _copies(self.weights), _copies(self.weights)
        self.step, self.best_step = 0, 0
        self.losses: list[float] = []
        self.validation_losses: dict[int, float] = {}

    @property
    def history(self) -> History:
        return History(
            losses=tuple(self.losses),
            validation_losses=self.validation_losses,
            best_step=self.best_step,
            steps=self.step,
        )

    @property
    def is_over(self) -> bool:
        """Whether all steps are made, or the last looks at the held-out loss found none better."""
        patience = self.training.early_stopping_patience
        idle = sum(1 for step in self.validation_losses if step > self.best_step)
        return self.step >= self.training.max_train_steps or (patience is not None and idle >= patience)

    def note(self, loss: float) -> None:
        """Keeps a held-out loss, and the averaged weights if it is the lowest."""
        self.validation_losses[self.step] = loss
        if self.step and loss < min(one for step, one in self.validation_losses.items() if step < self.step):
            self.best_step = self.step
            self.best = _copies(self.average)

    def average_(self) -> None:
        """Lets the averaged weights follow; faster at first, so that they forget where they started."""
        steps = PAUSE if self.step >= EAGER and self.training.ema_decay >= SLOW else 1
        if (self.step + 1) % steps and self.step + 1 < self.training.max_train_steps:
            return
        decay = min(self.training.ema_decay, (1 + self.step) / (10 + self.step)) ** steps
        get_ema_multi_avg_fn(decay)(self.average, self.weights, self.step)

    @torch.no_grad()
    def load_weights_(self, weights: Sequence[Tensor]) -> None:
        """Puts weights into the network."""
        for own, new in zip(self.weights, weights, strict=True):
            own.copy_(new)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The network with its averaged weights, until the context ends."""
        known = _copies(self.weights)
        self.load_weights_(self.average)
        try:
            yield
        finally:
            self.load_weights_(known)

    def write(self, path: Path, identity: dict[str, Any], extra: dict[str, Any]) -> None:
        """Writes all of it; `identity` says which run it is of."""
        parts = {
            "weights": _numbered(self.weights),
            "average": _numbered(self.average),
            "best": _numbered(self.best),
            "optimizer": optimizer_tensors(self.optimizer),
        }
        facts = {
            "identity": identity,
            "best": self.best_step,
            "losses": self.losses,
            "validation_losses": self.validation_losses,
        }
        write_checkpoint(path, parts, {**facts, "extra": extra})

    def restore_(self, path: Path, identity: dict[str, Any]) -> dict[str, Any]:
        """Goes back to what `write` wrote; returns what was written with it.

        Raises:
            FinetuningError: it is of another run.
        """
        parts, facts = read_checkpoint(path, next(self.module.parameters()).device)
        _check_identity(path, facts["identity"], identity)
        self.load_weights_(_listed(parts["weights"]))
        self.average, self.best = _listed(parts["average"]), _listed(parts["best"])
        self.best_step = facts["best"]
        restore_optimizer_(self.optimizer, parts.get("optimizer", {}))
        self.losses, self.step = facts["losses"], len(facts["losses"])
        self.validation_losses = {int(step): loss for step, loss in facts["validation_losses"].items()}
        extra: dict[str, Any] = facts["extra"]
        return extra


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [one.detach().clone() for one in tensors]


def _numbered(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {str(place): one for place, one in enumerate(tensors)}


def _listed(tensors: dict[str, Tensor]) -> list[Tensor]:
    return [tensors[str(place)] for place in range(len(tensors))]


def _check_identity(path: Path, known: dict[str, Any], wanted: dict[str, Any]) -> None:
    wanted = json.loads(json.dumps(wanted))
    differing = sorted(name for name in {*known, *wanted} if known.get(name) != wanted.get(name))
    if differing:
        changes = "; ".join(f"{name} was {known.get(name)!r}, is {wanted.get(name)!r}" for name in differing)
        raise FinetuningError(f"{path} is of another training: {changes}; delete it or choose another run folder")
