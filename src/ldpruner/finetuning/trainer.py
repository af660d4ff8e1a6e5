"""The loop of finetuning, on one device or under a launcher, with the same result.

Nothing random is carried from step to step: each draws for the whole batch, whatever the number of processes, from a
generator seeded by its own number. So an interrupted run goes on as if it had not been, and two processes learn as
one.
"""

import copy
import logging
import math
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.utils._pytree import tree_map

from ldpruner.errors import FinetuningError, one_line
from ldpruner.finetuning.conditioning import predicted
from ldpruner.finetuning.dataset import Rows, open_data
from ldpruner.finetuning.distillation import prepare_distillation
from ldpruner.finetuning.losses import feature_loss, features_of, latent_loss, stages
from ldpruner.finetuning.objectives import random_levels
from ldpruner.finetuning.settings import History, Training
from ldpruner.finetuning.state import State
from ldpruner.pipelines.fingerprints import architecture, precision, weights_digest
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import networks, uncompiled
from ldpruner.profiling.costs import device_of
from ldpruner.runtime import cast_

MOST_HELD = 256  # examples held out: a look shall cost little
SAMPLES = 256  # of the teacher, where there is no data
PRIME = 1_000_003  # runs of neighbouring seeds share no step's seed
CHECKPOINT = Path("finetuning", "state.safetensors")
WITHOUT_EFFECT = ("gradient_accumulation_steps", "gradient_checkpointing", "checkpointing_steps")  # on the result
LONG = timedelta(days=7)  # for which other processes wait while the first encodes

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Noisy examples of a step.

    Attributes:
        noisy, target: [batch, ...] latents, and what is to be found in them.
        times, weights: [batch] the scheduler's timesteps, and how much errors count at them.
        strengths: [batch, 1, ...] of autoguidance.
        given: what else the denoiser is called with.
    """

    noisy: Tensor
    target: Tensor
    times: Tensor
    weights: Tensor
    strengths: Tensor
    given: Sequence[Tensor]

    def on(self, device: torch.device) -> "Batch":
        """The same on a device, which is not waited for."""
        sent: Batch = tree_map(lambda one: _sent(one, device), self)
        return sent


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    # from memory that is not pinned a copy waits until the device has done all before it
    return tensor.pin_memory().to(device, non_blocking=True)


def finetune(
    pruned: DiffusionPipeline,
    teacher: DiffusionPipeline,
    data: Path | str | Rows | None = None,
    *,
    probe: Probe | None = None,
    component: str | None = None,
    training: Training | None = None,
    run: Path | str | None = None,
    report_to: Sequence[Any] = (),
) -> History:
    """Trains a pruned pipeline's denoiser in place, with the original as teacher.

    Args:
        pruned: what `prune` made.
        teacher: the original pipeline; it stays as it is.
        data: a folder of pictures or sounds, with captions where the pipeline takes prompts; a dataset of the
            `datasets` library; or None: the teacher's own samples then take their place.
        probe: how the teacher is called, and how many samples it draws where there is no data; 256 if None.
        component: which network, for pipelines with more than one denoiser.
        training: how long, how fast, by which losses.
        run: a folder for examples and checkpoints; the same call again goes on where it stopped.
        report_to: of Accelerate, or their names, such as `tensorboard`.

    Raises:
        FinetuningError: the pipeline, the data or the settings do not fit.
    """
    options: dict[str, Any] = {"component": component, "training": training, "run": run, "report_to": report_to}
    work = Finetuning(pruned, teacher, data, probe=probe, **options)
    for _ in work:
        pass
    return work.finish()


class Finetuning:
    """A training run: an iterable with a length that does the work, step by step, then `finish()`.

    The arguments are those of `finetune`.
    """

    def __init__(
        self,
        pruned: DiffusionPipeline,
        teacher: DiffusionPipeline,
        data: Path | str | Rows | None = None,
        *,
        probe: Probe | None = None,
        component: str | None = None,
        training: Training | None = None,
        run: Path | str | None = None,
        report_to: Sequence[Any] = (),
    ) -> None:
        self.training = (training or Training()).resolved(data=data is not None)
        self.folder = Path(run) if run is not None else None
        self.accelerator = _accelerator(self.training, teacher, self.folder, report_to)
        rows = open_data(data) if data is not None else None
        with self.accelerator.main_process_first():
            distillation = prepare_distillation(
                teacher.to(self.accelerator.device), rows, probe or Probe(samples=SAMPLES), component, self.folder
            )
        student: Any = networks(pruned)[distillation.component]
        self.distillation, self._was = distillation, (device_of(student), precision(student))
        student = student.to(self.accelerator.device)
        self._weaker = (
            copy.deepcopy(student).requires_grad_(False).eval() if self.training.autoguidance_scale else None
        )
        self._save_memory(student)
        self.state = State(student, self.training)
        self.trained, self.held = _split(len(distillation.examples), self.training)
        self.identity = {
            **self.training.model_dump(exclude=set(WITHOUT_EFFECT)),
            "network": architecture(student).digest,
            "examples": distillation.examples.digest,
            "weaker": weights_digest(self._weaker) if self._weaker is not None else None,
        }
        self.module, self.optimizer = self.accelerator.prepare(student, self.state.optimizer)
        self._fresh: list[Tensor] = []
        self._resume()
        self._left = self.training.max_train_steps - self.state.step

    def _save_memory(self, student: Any) -> None:
        if not self.training.gradient_checkpointing:
            return
        try:
            student.enable_gradient_checkpointing()
        except ValueError as error:
            raise FinetuningError(f"gradient_checkpointing=True: {one_line(error)}; leave it out") from error

    def __len__(self) -> int:
        return self._left

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return bool(self.accelerator.is_main_process)

    def __iter__(self) -> Iterator[int]:
        """Trains; yields how many steps are made after each of this sitting."""
        state, names = self.state, stages(self.distillation.teacher, self.state.module)
        wanted = names if self.training.feature_kd_weight else ()
        with features_of(self.distillation.teacher, wanted) as taught, features_of(state.module, wanted) as learnt:
            if not state.validation_losses:
                self._look(taught, learnt)
            while not state.is_over:
                self._advance(taught, learnt)
                if state.step % self.training.validation_steps == 0 or state.step == self.training.max_train_steps:
                    self._look(taught, learnt)
                if state.step % self.training.checkpointing_steps == 0 or state.is_over:
                    self._write()
                yield state.step

    def finish(self) -> History:
        """Puts the best weights into the pruned pipeline, as it was, and says how training went."""
        self._flush()
        self.accelerator.wait_for_everyone()
        module = self.accelerator.unwrap_model(self.module, keep_fp32_wrapper=False)
        self.state.load_weights_(self.state.best)
        if self.training.gradient_checkpointing:
            module.disable_gradient_checkpointing()
        device, dtype = self._was
        cast_(module.to(device), dtype)
        self.accelerator.end_training()
        return self.state.history

    def _advance(self, taught: dict[str, Tensor], learnt: dict[str, Tensor]) -> None:
        state = self.state
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.rate_at(state.step)
        generator = torch.Generator().manual_seed(self.training.seed * PRIME + state.step)
        chosen = self.trained[torch.randint(len(self.trained), (self.training.train_batch_size,), generator=generator)]
        losses = []
        for loss in self._losses(chosen, generator, taught, learnt):
            self.accelerator.backward(loss / self.training.gradient_accumulation_steps)
            losses.append(loss.detach())
        self.accelerator.clip_grad_norm_(state.weights, self.training.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        state.average_()
        self._fresh.append(torch.stack(losses).mean())
        state.step += 1

    def _losses(
        self, chosen: Tensor, generator: torch.Generator, taught: dict[str, Tensor], learnt: dict[str, Tensor]
    ) -> Iterator[Tensor]:
        """The losses on this process's share of the chosen examples, with noise drawn for all of them."""
        distillation = self.distillation
        copies = torch.multinomial(distillation.shares, len(chosen), replacement=True, generator=generator)
        levels = random_levels(len(chosen), generator)
        noise = torch.randn((len(chosen), *distillation.examples.shape), generator=generator)
        mine = torch.arange(self.accelerator.process_index, len(chosen), self.accelerator.num_processes)
        for part in mine.chunk(self.training.gradient_accumulation_steps):
            latents, given = distillation.examples.batch(chosen[part], copies[part])
            noisy, target, times = distillation.noised(latents, noise[part], levels[part])
            strengths = self.training.strengths(levels[part]).reshape(-1, *[1] * (latents.ndim - 1))
            weights = distillation.objective.weights(times) if self.training.snr_weighting else torch.ones(len(times))
            batch = Batch(noisy, target, times, weights, strengths, given).on(self.accelerator.device)
            yield self._loss(batch, taught, learnt)

    def _loss(self, batch: Batch, taught: dict[str, Tensor], learnt: dict[str, Tensor]) -> Tensor:
        distillation, training, noisy, target = self.distillation, self.training, batch.noisy, batch.target
        asked = noisy, batch.times, batch.given
        with self.accelerator.autocast(), uncompiled():  # whose hooks on features may otherwise not be called
            found = predicted(self.module(**distillation.conditions.arguments(*asked)), noisy).float()
            shown = distillation.shown(distillation.teacher, *asked) if training.is_taught else None
            if self._weaker is not None and shown is not None:
                lead = batch.strengths * (shown - distillation.shown(self._weaker, *asked))
                target, shown = target + lead, shown + lead
            loss = (training.task_loss_weight or 0.0) * latent_loss(found, target, batch.weights)
            if shown is not None:
                loss = loss + training.output_kd_weight * latent_loss(found, shown, batch.weights)
                loss = loss + training.feature_kd_weight * feature_loss(
                    taught, learnt, normalised=training.normalize_features
                )
        return loss

    @torch.no_grad()
    def _look(self, taught: dict[str, Tensor], learnt: dict[str, Tensor]) -> None:
        """The loss of the averaged weights on the held-out examples, the same noise each time."""
        state = self.state
        generator = torch.Generator().manual_seed((self.training.seed + 1) * PRIME - 1)
        # whole batches, so that each process has a share: a few examples come twice, with other noise
        batches = torch.arange(
            -(-len(self.held) // self.training.train_batch_size) * self.training.train_batch_size
        ) % len(self.held)
        parts = self.held[batches].split(self.training.train_batch_size)
        with state.averaged():
            losses = torch.stack([one for part in parts for one in self._losses(part, generator, taught, learnt)])
        loss = self.accelerator.reduce(losses.mean(), "mean")
        self._flush()
        state.note(float(loss))
        self.accelerator.log({"validation_loss": float(loss)}, step=state.step)

    def _flush(self) -> None:
        """Takes the losses of the last steps from the device, all at once."""
        if not self._fresh:
            return
        values = self.accelerator.reduce(torch.stack(self._fresh), "mean").tolist()
        first = self.state.step - len(values)
        for place, value in enumerate(values):
            self.accelerator.log({"loss": value, "rate": self.training.rate_at(first + place)}, step=first + place)
        self.state.losses += values
        self._fresh.clear()
        if not all(map(math.isfinite, values)):
            raise FinetuningError(
                f"the loss is not finite after {self.state.step} steps at "
                f"learning_rate={self.training.learning_rate:g}; lower it"
            )

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT if self.folder is not None else None
        if path is not None and path.exists():
            extra = self.state.restore_(path, self.identity)
            if self.accelerator.scaler is not None and extra["scaler"]:
                self.accelerator.scaler.load_state_dict(extra["scaler"])
            logger.info("finetuning goes on from step %d", self.state.step)

    def _write(self) -> None:
        self._flush()
        if self.folder is not None and self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            extra = {"scaler": scaler.state_dict() if scaler is not None else None}
            self.state.write(self.folder / CHECKPOINT, self.identity, extra)


def _accelerator(
    training: Training, teacher: DiffusionPipeline, folder: Path | None, report_to: Sequence[Any]
) -> Accelerator:
    # It keeps the precision and the device of the first one of a process otherwise.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    if teacher.device.type == "cuda":
        torch.cuda.set_device(teacher.device)
    # a pruned network may hold a weight that nothing reads; and gradient checkpointing asks for a static graph
    handlers = [DistributedDataParallelKwargs(static_graph=True), InitProcessGroupKwargs(timeout=LONG)]
    try:
        accelerator = Accelerator(
            mixed_precision=training.mixed_precision,
            cpu=teacher.device.type == "cpu",
            log_with=list(report_to) or None,
            project_dir=str(folder or "."),
            kwargs_handlers=handlers,
        )
    except ValueError as error:
        raise FinetuningError(f"report_to={list(report_to)}: {one_line(error)}") from error
    if len(accelerator.log_with) != len(report_to):
        raise FinetuningError(f"report_to={list(report_to)}: not all of their packages are installed")
    passes = accelerator.num_processes * training.gradient_accumulation_steps
    if training.train_batch_size % passes:
        raise FinetuningError(
            f"train_batch_size={training.train_batch_size} cannot be shared among {accelerator.num_processes} "
            f"processes in {training.gradient_accumulation_steps} passes each; choose a multiple of {passes}"
        )
    if report_to:
        accelerator.init_trackers("ld-pruner", config=training.model_dump(exclude_none=True))
    return accelerator


def _split(count: int, training: Training) -> tuple[Tensor, Tensor]:
    """Which examples are trained on, and which are held out."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(training.seed))
    held = min(MOST_HELD, max(1, round(count * training.validation_fraction)))
    if held >= count:
        raise FinetuningError(f"{count} examples are too few to train on and to hold some out; give at least 2")
    return order[held:], order[:held]
