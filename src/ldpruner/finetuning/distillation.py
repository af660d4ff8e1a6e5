"""Distillation: the teacher, the examples, and the losses of a student."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils._pytree import tree_map_only

from ldpruner.errors import FinetuningError, one_line
from ldpruner.finetuning.call_arguments import UNSUPPORTED
from ldpruner.finetuning.conditioning import CallSignature, watch_call_signature
from ldpruner.finetuning.dataset import Rows
from ldpruner.finetuning.examples import Examples, Source, digest_of
from ldpruner.finetuning.losses import feature_loss, features_of, latent_loss, stages
from ldpruner.finetuning.objectives import Objective, objective_of, random_levels
from ldpruner.finetuning.recorded_calls import OwnOutput, RecordedCalls, record_calls
from ldpruner.finetuning.settings import Training
from ldpruner.operators.patching import MISFITS
from ldpruner.pipelines.denoiser import Denoiser, find_denoiser
from ldpruner.pipelines.fingerprints import module_dtype
from ldpruner.pipelines.offload import module_device
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import force_eager
from ldpruner.pipelines.sampling import largest_batch

BATCH_SIZE = 16  # samples of the teacher at once
MAX_VALIDATION_EXAMPLES = 256  # so that a validation costs little
TEACHER_EXAMPLES = 8  # on which the teacher is validated
GRID = 1001  # noise levels among which those of a denoiser are found
Inputs: TypeAlias = tuple[Tensor, Tensor, Sequence[Any]]  # noisy latents, timesteps and conditions
UNCONDITIONAL_SHARE = 0.2  # of the examples; classifier-free guidance uses 0.1 to 0.2 (Ho and Salimans 2022)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Distillation:
    """The original's denoiser as the teacher, and the examples; `sign` is -1 where a pipeline negates its output.

    Recorded calls of the teacher stand for examples, how it is called, and an objective, where these are not known.
    """

    component: str
    teacher: nn.Module
    call_signature: CallSignature | RecordedCalls
    objective: Objective | OwnOutput
    examples: Examples | RecordedCalls
    sign: float = 1.0

    @property
    def copies(self) -> int:
        """Conditions of each example: 2 under classifier-free guidance, with and without the prompt."""
        return self.call_signature.copies * self.call_signature.calls

    def add_noise(self, clean: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, the target of the denoiser's output, and the scheduler's timesteps."""
        noisy, target, times = self.objective.add_noise(clean, noise, levels)
        return noisy, self.sign * target, times

    def levels(self, batch: int, generator: torch.Generator) -> Tensor:
        """Noise levels in 0 to 1, [batch], among those at which the pipeline calls this denoiser."""
        low, high = self._level_range
        return low + (high - low) * random_levels(batch, generator)

    @cached_property
    def _level_range(self) -> tuple[float, float]:
        low, high = self.call_signature.time_range
        levels, none = torch.linspace(0, 1, GRID), torch.zeros(GRID, 1)
        _, _, times = self.objective.add_noise(none, none, levels)
        inside = levels[(low <= times) & (times <= high)]
        return float(inside.min()), float(inside.max())

    @cached_property
    def copy_shares(self) -> Tensor:
        """How often each copy of the conditions is trained on, [copies]; unconditional ones less often."""
        unconditional = torch.ones(self.copies, dtype=torch.bool)
        for distinct in self.examples.conditions:
            first = distinct.digests[0]
            unconditional &= (first == first[:1]).all(2).all(0)
        if unconditional.all() or not unconditional.any():
            return torch.full((self.copies,), 1 / self.copies)
        conditional_share = (1 - UNCONDITIONAL_SHARE) / (~unconditional).sum()
        return torch.where(unconditional, UNCONDITIONAL_SHARE / unconditional.sum(), conditional_share)

    @torch.no_grad()
    def predict(self, network: nn.Module, noisy: Tensor, times: Tensor, conditions: Sequence[Any]) -> Tensor:
        """The output of a network that is not trained, in full precision."""
        noisy = noisy.to(dtype=module_dtype(network))
        return self.call_signature.prediction(
            network(**self.call_signature.arguments(noisy, times, conditions)), noisy
        )

    def validate_teacher(self, pipeline: str) -> "Distillation":
        """Calls the teacher on some noised examples, and sets the sign of its output.

        Raises:
            FinetuningError: it cannot be called on noised latents.
        """
        generator = torch.Generator().manual_seed(0)
        indices = torch.arange(TEACHER_EXAMPLES) % len(self.examples)
        indices = indices[self.examples.groups(indices, torch.zeros_like(indices))[0]]
        latents, conditions = self.examples.batch(indices, torch.zeros_like(indices))
        noise, levels = torch.randn(latents.shape, generator=generator), self.levels(len(indices), generator)
        noisy, target, times = self.objective.add_noise(latents, noise, levels)
        try:
            output = self.predict(self.teacher, noisy.to(module_device(self.teacher)), times, conditions).cpu()
        except MISFITS as error:
            raise FinetuningError(f"{pipeline} refuses noised examples: {one_line(error)}; {UNSUPPORTED}") from error
        is_negated = mse_loss(-output, target) < 0.5 * mse_loss(output, target)
        return replace(self, sign=-1.0 if is_negated else 1.0)


def prepare_distillation(
    teacher: DiffusionPipeline, rows: Rows | None, probe: Probe, component: str | None, folder: Path | None
) -> Distillation:
    """Watches how the teacher is called, and samples or encodes the examples into a folder.

    Raises:
        FinetuningError: the pipeline or the data do not fit.
    """
    probe = probe.completed(teacher)
    denoiser = find_denoiser(teacher, component, probe.arguments(teacher, [0]))
    try:
        return _prepare(teacher, denoiser, rows, probe, folder)
    except FinetuningError as error:
        if rows is not None:
            raise
        logger.warning("%s", f"the original's own calls are the examples: {error}".partition(f"; {UNSUPPORTED}")[0])
    digest = str(digest_of(teacher, probe, calls=denoiser.component))
    calls = record_calls(teacher, denoiser.component, probe, digest, folder / "examples" / digest if folder else None)
    return Distillation(denoiser.component, denoiser.module, calls, OwnOutput(), calls)


def _prepare(
    teacher: DiffusionPipeline, denoiser: Denoiser, rows: Rows | None, probe: Probe, folder: Path | None
) -> Distillation:
    """Noised latents as examples."""
    batch = largest_batch(teacher, probe.replace(samples=max(2, probe.samples)), BATCH_SIZE)
    call_signature = watch_call_signature(teacher, denoiser.component, probe, batches=batch > 1)
    objective = objective_of(call_signature.scheduler)
    source = Source(teacher, denoiser.component, call_signature, probe, batch, rows)
    examples = source.examples(folder / "examples" if folder is not None else None)
    distillation = Distillation(denoiser.component, denoiser.module, call_signature, objective, examples)
    return distillation.validate_teacher(type(teacher).__name__)


class DistillationLoss:
    """The losses of a student: denoising, the teacher's output and the teacher's features.

    The weak model is the unfinetuned student, for autoguidance.
    """

    def __init__(
        self,
        distillation: Distillation,
        student: nn.Module,
        weak_model: nn.Module | None,
        training: Training,
        accelerator: Accelerator,
    ) -> None:
        self.distillation, self.student, self.weak_model = distillation, student, weak_model
        self.training, self.accelerator = training, accelerator
        is_alone = isinstance(distillation.objective, OwnOutput)
        if is_alone and (training.task_loss_weight or training.guidance_interval != (0, 1)):
            raise FinetuningError(
                f"task_loss_weight={training.task_loss_weight}, guidance_interval={training.guidance_interval}: the "
                "original's own calls have neither a task nor noise levels; leave these settings out"
            )
        self.stages = stages(distillation.teacher, student) if training.feature_kd_weight else {}
        count = len(distillation.examples)
        validation = min(MAX_VALIDATION_EXAMPLES, max(1, round(count * training.validation_fraction)))
        if validation >= count:
            raise FinetuningError(f"{count} examples are too few for training and validation; give at least 2")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(training.seed))
        self.validation, self.trained = order[:validation], order[validation:]

    def training_losses(self, module: nn.Module, generator: torch.Generator) -> Iterator[Tensor]:
        """The losses on this process's part of a random batch, one for each accumulation pass."""
        chosen = torch.randint(len(self.trained), (self.training.train_batch_size,), generator=generator)
        yield from self._losses(module, self.trained[chosen], generator)

    def validation_losses(self, module: nn.Module, generator: torch.Generator) -> Iterator[Tensor]:
        """The losses on this process's part of the validation examples."""
        size, count = self.training.train_batch_size, len(self.validation)
        # whole batches, so that each process has a part: a few examples come twice, with other noise
        padded = self.validation[torch.arange(-(-count // size) * size) % count]
        for indices in padded.split(size):
            yield from self._losses(module, indices, generator)

    def _losses(self, module: nn.Module, indices: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        """The losses on this process's part of some examples; noise is sampled for all of them."""
        distillation, training = self.distillation, self.training
        copies = torch.multinomial(distillation.copy_shares, len(indices), replacement=True, generator=generator)
        levels = distillation.levels(len(indices), generator)
        noise = torch.randn((len(indices), *distillation.examples.shape), generator=generator)
        part = torch.arange(self.accelerator.process_index, len(indices), self.accelerator.num_processes)
        for places in part.chunk(training.gradient_accumulation_steps):
            groups = [places[group] for group in distillation.examples.groups(indices[places], copies[places])]
            losses = [
                self._noised_loss(module, indices[group], copies[group], noise[group], levels[group]) * len(group)
                for group in groups
            ]
            yield torch.stack(losses).sum() / len(places)

    def _noised_loss(
        self, module: nn.Module, indices: Tensor, copies: Tensor, noise: Tensor, levels: Tensor
    ) -> Tensor:
        """The loss on examples that run together, with noise [batch, ...] at noise levels [batch]."""
        distillation, training = self.distillation, self.training
        low, high = training.guidance_interval
        latents, conditions = distillation.examples.batch(indices, copies)
        noisy, target, times = distillation.add_noise(latents, noise, levels)
        is_guided = (low <= levels) & (levels <= high)
        guidance = (training.autoguidance_scale * is_guided).reshape(-1, *[1] * (latents.ndim - 1))
        weights = distillation.objective.weights(times) if training.snr_weighting else torch.ones(len(times))
        batch = tree_map_only(Tensor, self._on_device, ((noisy, times, conditions), target, weights, guidance))
        return self._loss(module, *batch)

    def _on_device(self, tensor: Tensor) -> Tensor:
        device = self.accelerator.device
        if device.type != "cuda" or tensor.is_cuda:
            return tensor.to(device)
        # a copy from memory that is not pinned waits until the device has finished all earlier work
        return tensor.pin_memory().to(device, non_blocking=True)

    def _loss(self, module: nn.Module, inputs: Inputs, target: Tensor, weights: Tensor, guidance: Tensor) -> Tensor:
        """The loss of outputs for `inputs` with SNR weights [batch] and strengths of autoguidance [batch, 1, ...]."""
        distillation, training = self.distillation, self.training
        with (
            self.accelerator.autocast(),
            force_eager(),  # compiled networks may not call hooks
            features_of(distillation.teacher, self.stages) as teacher_features,
            features_of(self.student, self.stages.values()) as student_features,
        ):
            signature = distillation.call_signature
            output = signature.prediction(module(**signature.arguments(*inputs)), inputs[0])
            if not training.needs_teacher:
                return (training.task_loss_weight or 0.0) * latent_loss(output, target, weights)
            teacher_output = distillation.predict(distillation.teacher, *inputs)
            if self.weak_model is not None:
                shift = guidance * (teacher_output - distillation.predict(self.weak_model, *inputs))
                target, teacher_output = target + shift, teacher_output + shift
            loss = (training.task_loss_weight or 0.0) * latent_loss(output, target, weights)
            loss = loss + training.output_kd_weight * latent_loss(output, teacher_output, weights)
            return loss + training.feature_kd_weight * feature_loss(
                teacher_features, student_features, normalize=training.normalize_features
            )
