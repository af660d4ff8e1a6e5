"""One training loop for every network of the zoo: AdamW, warm-up, cosine decay, moving average, resume.

Nothing random is carried from step to step: each step draws from a generator seeded by its own number. So a run
that was interrupted goes on exactly as if it had not been.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from zoo.checkpoints import read_checkpoint, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import TypeAlias

    Learning: TypeAlias = Callable[[Sequence[Tensor]], Tensor]

WARM = 3  # passes before one is recorded, in which libraries choose their ways

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train. `rate` is the peak learning rate.

    It falls to zero over `horizon` steps, which are all steps unless given: a stage may end while it still learns.
    """

    steps: int
    batch: int
    rate: float
    warmup: int
    weight_decay: float = 0.01
    clip: float = 1.0
    average: float = 0.999
    checkpoint_every: int = 250
    seed: int = 0
    horizon: int | None = None

    def rate_at(self, step: int) -> float:
        """Learning rate of step `step`: a linear rise to `rate`, then a cosine fall to zero."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, (self.horizon or self.steps) - self.warmup)
        return self.rate * 0.5 * (1 + math.cos(math.pi * done))

    def average_at(self, step: int) -> float:
        """Decay of the moving average at `step`: short at first, so that the random start is soon forgotten."""
        return min(self.average, (1 + step) / (10 + step))


@dataclass(frozen=True)
class Trained:
    """The averaged network, the loss of every step, and the seconds it took over all its sittings."""

    module: nn.Module
    losses: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class Loss:
    """What a network learns.

    Attributes:
        draw: samples, as many as asked for, by a generator; on the CPU, so that they are the same for every device.
        value: the scalar loss of a network on what was drawn.
    """

    draw: Callable[[int, torch.Generator], Sequence[Tensor]]
    value: Callable[..., Tensor]


def train(module: nn.Module, loss: Loss, schedule: Schedule, checkpoint: Path) -> Trained:
    """Train `module` in place, from `checkpoint` where there is one, and write it as training goes."""
    run = _Run(module, loss, schedule, checkpoint)
    if checkpoint.exists():
        run.restore()
    run.module.train()
    for step in range(run.step, schedule.steps):
        run.advance(step)
        if (step + 1) % schedule.checkpoint_every == 0 or step + 1 == schedule.steps:
            run.write()
    return Trained(run.averaged.eval(), tuple(run.losses), run.seconds)


def in_bfloat16(loss: Loss) -> Loss:
    """The same loss, its products taken in bfloat16: twice as fast where the processor knows it."""

    def shortened(module: nn.Module, *drawn: Tensor) -> Tensor:
        with torch.autocast(drawn[0].device.type, torch.bfloat16):
            return loss.value(module, *drawn)

    return Loss(loss.draw, shortened)


def averaged_weights(checkpoint: Path) -> tuple[dict[str, Tensor], int]:
    """The averaged weights in a checkpoint, finished or not, and the number of steps they have seen."""
    tensors, state = read_checkpoint(checkpoint)
    return _part(tensors, "averaged."), int(state["step"])


class _Run:
    """The state of a training run: what a checkpoint holds."""

    def __init__(self, module: nn.Module, loss: Loss, schedule: Schedule, checkpoint: Path) -> None:
        # channels_last is a fifth to a quarter faster on a CPU and changes no shape
        self.module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = copy.deepcopy(self.module).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.module.parameters(), schedule.rate, weight_decay=schedule.weight_decay)
        self.loss, self.schedule, self.checkpoint = loss, schedule, checkpoint
        self.device = next(self.module.parameters()).device
        self.learn: Learning | None = None
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []

    def advance(self, step: int) -> None:
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(self.schedule.seed * 1_000_003 + step)
        drawn = [it.to(self.device) for it in self.loss.draw(self.schedule.batch, generator)]
        self.learn = self.learn or self._learning(drawn)
        value = self.learn(drawn)
        self._descend(step)
        self._average(step)
        self.losses.append(round(value.item(), 6))
        self.step = step + 1
        self.seconds += time.perf_counter() - started
        if self.step % 50 == 0:
            self._log()

    def _learning(self, drawn: Sequence[Tensor]) -> Learning:
        """What makes the gradients of drawn samples and returns their loss."""
        if self.device.type == "cuda":
            return _recorded(self.module, self.loss, drawn)

        def learn(drawn: Sequence[Tensor]) -> Tensor:
            self.optimizer.zero_grad()
            value = self.loss.value(self.module, *drawn)
            value.backward()
            return value

        return learn

    def _descend(self, step: int) -> None:
        self.optimizer.param_groups[0]["lr"] = self.schedule.rate_at(step)
        nn.utils.clip_grad_norm_(self.module.parameters(), self.schedule.clip)
        self.optimizer.step()

    @torch.no_grad()
    def _average(self, step: int) -> None:
        kept = self.schedule.average_at(step)
        follow = get_ema_multi_avg_fn(kept)
        follow(list(self.averaged.parameters()), list(self.module.parameters()), step)
        for average, value in zip(self.averaged.buffers(), self.module.buffers(), strict=True):
            average.copy_(value)

    def _log(self) -> None:
        recent = self.losses[-50:]
        left = (self.schedule.steps - self.step) * self.seconds / self.step
        logger.info(
            "%s step %d of %d, loss %.4f, %.3f s/step, %.1f min left",
            self.checkpoint.stem, self.step, self.schedule.steps, sum(recent) / len(recent),
            self.seconds / self.step, left / 60,
        )  # fmt: skip

    def write(self) -> None:
        tensors = {f"module.{name}": tensor for name, tensor in self.module.state_dict().items()}
        tensors |= {f"averaged.{name}": tensor for name, tensor in self.averaged.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
        state = {"step": self.step, "seconds": self.seconds, "losses": self.losses, "schedule": asdict(self.schedule)}
        write_checkpoint(self.checkpoint, tensors, state)

    def restore(self) -> None:
        tensors, state = read_checkpoint(self.checkpoint)
        if Schedule(**state["schedule"]) != self.schedule:
            raise ValueError(
                f"{self.checkpoint} was trained with {state['schedule']}, not {asdict(self.schedule)}; "
                "remove it to train anew"
            )
        self.module.load_state_dict(_part(tensors, "module."))
        self.averaged.load_state_dict(_part(tensors, "averaged."))
        self._restore_moments(_part(tensors, "optimizer."))
        self.step, self.seconds, self.losses = state["step"], state["seconds"], state["losses"]
        logger.info("%s goes on from step %d", self.checkpoint.stem, self.step)

    def _restore_moments(self, tensors: dict[str, Tensor]) -> None:
        for index, parameter in enumerate(self.module.parameters()):
            moments = _part(tensors, f"{index}.")
            # the memory layout of the parameter, which the file does not keep, decides how its elements are walked
            self.optimizer.state[parameter] = {
                name: torch.empty_like(parameter.detach()).copy_(moment) if moment.ndim else moment
                for name, moment in moments.items()
            }


def _recorded(module: nn.Module, loss: Loss, drawn: Sequence[Tensor]) -> Learning:
    """A pass forth and back as a CUDA graph: of networks this small most of the time is the launching of kernels."""
    inputs = [it.clone() for it in drawn]
    own = {name: it.clone() for name, it in module.named_buffers()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            loss.value(module, *inputs).backward()
    torch.cuda.current_stream().wait_stream(stream)
    module.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = loss.value(module, *inputs)
        value.backward()
    for name, it in module.named_buffers():
        it.copy_(own[name])

    def learn(drawn: Sequence[Tensor]) -> Tensor:
        for known, new in zip(inputs, drawn, strict=True):
            known.copy_(new)
        graph.replay()
        return value

    return learn


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
