"""The training loop, on one device or under a launcher, with the same result.

No random state is carried from step to step: each step samples for the whole batch, whatever the number of processes,
with a generator seeded by its own number. So an interrupted run resumes bit-identically, and two processes train as
one.
"""

import contextlib
import functools
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ldpruner.errors import FinetuningError
from ldpruner.files import locked
from ldpruner.finetuning.accelerator import prepare_accelerator
from ldpruner.finetuning.dataset import Rows, open_data
from ldpruner.finetuning.distillation import DistillationLoss, prepare_distillation
from ldpruner.finetuning.settings import History, Quality, Training
from ldpruner.finetuning.sharding import is_sharded
from ldpruner.finetuning.state import State
from ldpruner.finetuning.student import Student
from ldpruner.finetuning.teacher import Offloading, OutputCache
from ldpruner.pipelines.fingerprints import architecture, weights_digest
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import networks

SAMPLES = 256  # of the teacher, where there is no data
SEED_STRIDE = 1_000_003  # runs with neighbouring seeds share no step's seed
CHECKPOINT = Path("finetuning", "state.safetensors")
OUTPUTS = Path("finetuning", "outputs")  # of the teacher
WITHOUT_EFFECT = {  # on the result
    *("gradient_accumulation_steps", "gradient_checkpointing", "checkpointing_steps"),
    *("teacher", "merge_adapter", "max_hours"),
}

MeasureQuality: TypeAlias = Callable[
    [DiffusionPipeline, DiffusionPipeline], Quality
]  # of the pruned one and the teacher
Losses: TypeAlias = Callable[[nn.Module, torch.Generator], Iterable[Tensor]]

logger = logging.getLogger(__name__)


class Trainer:
    """Trains a network in place: an iterable with a length that takes one step after the other, then `finish()`.

    Args:
        module: the network; it stays in training or evaluation mode.
        losses: yields the mean loss of this process's part of a batch, for each accumulation pass in turn.
        training: how long, how fast.
        accelerator: the devices and the precision, of `prepare_accelerator`.
        validation_losses: yields the losses on the validation examples; None keeps the last averaged weights.
        quality: measures the network with its averaged weights at each validation; the best weights by it are kept.
        checkpoint: a file for its state, from which training resumes.
        identity: what describes the run besides its settings. A checkpoint of another run is refused.
    """

    def __init__(
        self,
        module: nn.Module,
        losses: Losses,
        training: Training,
        accelerator: Accelerator,
        *,
        validation_losses: Losses | None = None,
        quality: Callable[[], Quality] | None = None,
        checkpoint: Path | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.losses, self.validation_losses, self.training = losses, validation_losses, training
        self.accelerator, self.checkpoint, self.quality = accelerator, checkpoint, quality
        self.identity = {**training.model_dump(exclude=WITHOUT_EFFECT), **(identity or {})}
        self.digest = hashlib.blake2b(json.dumps(self.identity).encode(), digest_size=8).hexdigest()
        self.state = State(module, training, accelerator.scaler)
        if is_sharded(module):
            self.module, self.optimizer = module, accelerator.prepare(self.state.optimizer)
        else:
            self.module, self.optimizer = accelerator.prepare(module, self.state.optimizer)
        self._pending: list[tuple[Tensor, float]] = []  # losses that are still on the device, and learning rates
        if checkpoint is not None and checkpoint.exists():
            self.state.restore_(checkpoint, self.identity)
            logger.info("training resumes from step %d", self.state.step)
        self._remaining = training.max_train_steps - self.state.step

    def __len__(self) -> int:
        return self._remaining

    def __iter__(self) -> Iterator[int]:
        """Trains; yields the number of steps done so far, those before a resume included."""
        state, training = self.state, self.training
        self._started = time.perf_counter() - state.seconds
        if not state.validation_losses:
            self._validate()
        while not state.is_over:
            self._step()
            if state.step % training.validation_steps == 0 or state.step == training.max_train_steps:
                self._validate()
            if state.step % training.checkpointing_steps == 0 or state.is_over:
                self._flush()
                state.seconds = time.perf_counter() - self._started
                if self.checkpoint is not None:
                    state.write(self.checkpoint, self.identity, is_first=self.accelerator.is_main_process)
            yield state.step

    def finish(self) -> History:
        """Loads the best averaged weights into the network, and returns how training went."""
        self._flush()
        self.accelerator.wait_for_everyone()
        if not is_sharded(self.module):
            self.accelerator.unwrap_model(self.module, keep_fp32_wrapper=False)
        self.state.load_best_()
        self._restore()
        self.accelerator.end_training()
        return self.state.history

    def _restore(self) -> None:
        """Brings the network back to how it was; called in all processes."""

    def _step(self) -> None:
        losses = []
        for loss in self.losses(self.module, step_generator(self.training, self.state.step)):
            self.accelerator.backward(loss / self.training.gradient_accumulation_steps)
            losses.append(loss.detach())
        self.accelerator.clip_grad_norm_(self.state.weights, self.training.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._pending.append((torch.stack(losses).mean(), self.state.learning_rate))
        self.state.advance_(skipped=self.optimizer.step_was_skipped)

    @torch.no_grad()
    def _validate(self) -> None:
        """Records the loss of the averaged weights on the validation examples, with the same noise each time."""
        self._flush()
        if self.validation_losses is None:
            return
        with self.state.averaged():
            losses = list(self.validation_losses(self.module, validation_generator(self.training)))
            quality = self._measure()
        hours = torch.full_like(losses[0], (time.perf_counter() - self._started) / 3600)
        means = self.accelerator.reduce(torch.stack([torch.stack(losses).mean(), hours]), "mean")
        loss, elapsed = means.tolist()  # of all processes, so that they stop together
        self.state.record_validation(loss, elapsed, quality)
        values = {"validation_loss": loss, **({"quality": quality.value} if quality is not None else {})}
        self.accelerator.log(values, step=self.state.step)

    def _measure(self) -> Quality | None:
        """The quality of the averaged weights, measured by one process."""
        if self.quality is None:
            return None
        shared = [self.quality() if self.accelerator.is_main_process else None]
        return cast(Quality, broadcast_object_list(shared)[0])

    def _flush(self) -> None:
        """Fetches the losses of the last steps from the device, all at once."""
        if not self._pending:
            return
        losses, rates = zip(*self._pending, strict=True)
        values = self.accelerator.reduce(torch.stack(losses), "mean").tolist()
        self._pending.clear()
        for value, rate in zip(values, rates, strict=True):
            self.accelerator.log({"loss": value, "learning_rate": rate}, step=len(self.state.losses))
            self.state.losses.append(value)
        logger.info(
            "step %d of %d, loss %.4f", self.state.step, self.training.max_train_steps, math.fsum(values) / len(values)
        )
        if not all(map(math.isfinite, values)):
            raise FinetuningError(
                f"the loss is not finite after {self.state.step} steps at "
                f"learning_rate={self.training.learning_rate:g}; lower it"
            )


def finetune(  # noqa: PLR0913  (each is a choice of its own)
    pruned: DiffusionPipeline,
    teacher: DiffusionPipeline,
    data: Path | str | Rows | None = None,
    *,
    probe: Probe | None = None,
    component: str | None = None,
    training: Training | None = None,
    run: Path | str | None = None,
    report_to: Sequence[Any] = (),
    quality: MeasureQuality | None = None,
) -> History:
    """Trains a pruned pipeline's denoiser in place, with the original as teacher.

    Only weights that require gradients change: all of a denoiser as it is loaded, or a LoRA on a frozen one.

    Args:
        pruned: what `prune` made.
        teacher: the original pipeline; it is not changed.
        data: a folder of pictures or sounds, with captions where the pipeline takes prompts; a dataset of the
            `datasets` library; or None to train on the teacher's own samples.
        probe: how the teacher is called, and how many samples it gives where there is no data; 256 if None.
        component: which network, for pipelines with more than one denoiser.
        training: how long, how fast, by which losses.
        run: a folder for examples and checkpoints; the same call again resumes there.
        report_to: trackers of Accelerate, or their names, such as `tensorboard`.
        quality: measures the pruned pipeline, given it and the teacher, at each validation. The best weights by it are
            kept, and training stops when it says so.

    Raises:
        FinetuningError: the pipeline, the data or the settings do not fit.
        RunFolderBusy: another process is writing into the folder.
    """
    options: dict[str, Any] = {"component": component, "training": training, "run": run, "report_to": report_to}
    options["quality"] = quality
    with locked(run) if run is not None else contextlib.nullcontext():
        work = Finetuning(pruned, teacher, data, probe=probe, **options)
        for _ in work:
            pass
        return work.finish()


class Finetuning(Trainer):
    """A finetuning run, with the arguments of `finetune`."""

    def __init__(  # noqa: PLR0913  (each is a choice of its own)
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
        quality: MeasureQuality | None = None,
    ) -> None:
        rows, probe = open_data(data) if data is not None else None, probe or Probe(samples=SAMPLES)
        requested = training or Training()
        training = requested.resolved(data=data is not None, steps=probe.steps)
        if rows is not None and requested.task_loss_weight is None and not training.task_loss_weight:
            logger.warning(
                "%d steps are those of a few-step model: no denoising loss; task_loss_weight=1 adds it", probe.steps
            )
        if quality is not None and training.teacher != "resident":
            raise FinetuningError(f"teacher={training.teacher!r}: the quality is measured beside a resident teacher")
        folder = Path(run) if run is not None else None
        accelerator = prepare_accelerator(training, teacher.device, folder, report_to)
        self._ending, self._offloading = contextlib.ExitStack(), None
        if training.teacher == "resident":
            teacher.to(accelerator.device)
        else:
            self._offloading = Offloading(teacher, accelerator.device)
            self._ending.callback(self._offloading.close)
        with accelerator.main_process_first():
            self.distillation = prepare_distillation(teacher, rows, probe, component, folder, training.timesteps)
        if self._offloading is not None:
            self._offloading.unload_others()  # before the student takes their place on the device
        self.student = Student(networks(pruned)[self.distillation.component], training, accelerator)
        trained, weak_model = self.student.trained, self.student.weak_model
        loss = DistillationLoss(self.distillation, trained, weak_model, training, accelerator)
        super().__init__(
            trained,
            loss.training_losses,
            training,
            accelerator,
            validation_losses=loss.validation_losses,
            quality=functools.partial(self._quality, pruned, teacher, quality) if quality is not None else None,
            checkpoint=folder / CHECKPOINT if folder is not None else None,
            identity=_identity(self.student.network, weak_model, self.distillation.examples.digest),
        )
        self._place_teacher(loss, folder)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return bool(self.accelerator.is_main_process)

    def _restore(self) -> None:
        """Puts the best weights into the pruned pipeline, on its device and in its precision."""
        self._ending.close()
        self.student.finish(self.distillation.teacher)

    def write_adapter(self, folder: Path) -> None:
        """Writes the adapter that `finish` left in the network, and merges it."""
        self.student.write_adapter(self.distillation.component, folder)

    def _measure(self) -> Quality | None:
        if self.quality is not None:
            self.student.gather()
        return super()._measure()

    def _quality(self, pruned: DiffusionPipeline, teacher: DiffusionPipeline, measure: MeasureQuality) -> Quality:
        pruned.to(self.accelerator.device)
        with self.student.in_its_precision():
            return measure(pruned, teacher)

    def _place_teacher(self, loss: DistillationLoss, folder: Path | None) -> None:
        """Shares the teacher's weights, or caches its outputs, so that a step needs less memory."""
        training = self.training
        if self._offloading is None:
            self.student.share_with(self.distillation.teacher)
        elif training.teacher == "cached":
            cache = OutputCache(folder / OUTPUTS / self.digest if folder is not None else None)
            steps = (step_generator(training, step) for step in range(self.state.step, training.max_train_steps))
            loss.cache_outputs(cache, steps, validation_generator(training))
            self._offloading.unload()
            self._ending.callback(cache.clear)


def step_generator(training: Training, step: int) -> torch.Generator:
    """The random numbers of a step."""
    return torch.Generator().manual_seed(training.seed * SEED_STRIDE + step)


def validation_generator(training: Training) -> torch.Generator:
    """The random numbers of each validation."""
    return torch.Generator().manual_seed((training.seed + 1) * SEED_STRIDE - 1)


def _identity(student: nn.Module, weak_model: nn.Module | None, examples: str) -> dict[str, Any]:
    identity: dict[str, Any] = {
        "network": architecture(student).digest,
        "examples": examples,
        "weak_model": weights_digest(weak_model) if weak_model is not None else None,
    }
    if frozen := [name for name, weight in student.named_parameters() if not weight.requires_grad]:
        identity["frozen"] = frozen
    return identity
