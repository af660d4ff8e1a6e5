"""Distillation: the teacher, the examples, and the losses of a student."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils._pytree import tree_map

from ldpruner.errors import FinetuningError, one_line
from ldpruner.finetuning.conditioning import CallSignature, predicted, watch_call_signature
from ldpruner.finetuning.dataset import Rows
from ldpruner.finetuning.examples import Examples, Source
from ldpruner.finetuning.losses import feature_loss, features_of, latent_loss, stages
from ldpruner.finetuning.objectives import Objective, objective_of, random_levels
from ldpruner.finetuning.settings import Training
from ldpruner.finetuning.teacher import OutputCache
from ldpruner.operators.patching import MISFITS
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.fingerprints import module_dtype
from ldpruner.pipelines.offload import module_device
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import force_eager, schedulers
from ldpruner.pipelines.sampling import largest_batch

BATCH_SIZE = 16  # samples of the teacher at once
MAX_VALIDATION_EXAMPLES = 256  # so that a validation costs little
TEACHER_EXAMPLES = 8  # on which the teacher is validated
Inputs: TypeAlias = tuple[Tensor, Tensor, Sequence[Tensor]]  # noisy latents, timesteps and conditions
UNCONDITIONAL_SHARE = 0.2  # of the examples; classifier-free guidance uses 0.1 to 0.2 (Ho and Salimans 2022)


@dataclass(frozen=True)
class Batch:
    """Examples of one pass.

    Attributes:
        key: tells the batches of a training apart.
        inputs: noisy latents [batch, ...], timesteps [batch] and conditions [batch, rows, ...].
        target: of the denoising loss, [batch, ...].
        weights: SNR weights of the loss, [batch].
        guidance: strengths of autoguidance, [batch, 1, ...].
    """

    key: str
    inputs: Inputs
    target: Tensor
    weights: Tensor
    guidance: Tensor


@dataclass(frozen=True)
class Distillation:
    """The original's denoiser as the teacher, and the examples; `sign` is -1 where a pipeline negates its output."""

    component: str
    teacher: nn.Module
    call_signature: CallSignature
    objective: Objective
    examples: Examples
    sign: float = 1.0

    @property
    def copies(self) -> int:
        """Conditions of each example: 2 under classifier-free guidance, with and without the prompt."""
        return self.call_signature.copies * self.call_signature.calls

    def add_noise(self, clean: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, the target of the denoiser's output, and the scheduler's timesteps."""
        noisy, target, times = self.objective.add_noise(clean, noise, levels)
        return noisy, self.sign * target, times

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
    def predict(self, network: nn.Module, noisy: Tensor, times: Tensor, conditions: Sequence[Tensor]) -> Tensor:
        """The output of a network that is not trained, in full precision."""
        noisy = noisy.to(dtype=module_dtype(network))
        return predicted(network(**self.call_signature.arguments(noisy, times, conditions)), noisy).float()

    def validate_teacher(self, pipeline: str) -> "Distillation":
        """Calls the teacher on some noised examples, and sets the sign of its output.

        Raises:
            FinetuningError: it cannot be called on noised latents.
        """
        generator = torch.Generator().manual_seed(0)
        indices = torch.arange(TEACHER_EXAMPLES) % len(self.examples)
        latents, conditions = self.examples.batch(indices, torch.zeros_like(indices))
        noise, levels = torch.randn(latents.shape, generator=generator), random_levels(TEACHER_EXAMPLES, generator)
        noisy, target, times = self.objective.add_noise(latents, noise, levels)
        try:
            output = self.predict(self.teacher, noisy.to(module_device(self.teacher)), times, conditions).cpu()
        except MISFITS as error:
            raise FinetuningError(f"{pipeline} cannot be finetuned yet: {one_line(error)}") from error
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
    if rows is not None and any("image" in name for name in probe.call):
        raise FinetuningError(
            f"the probe's images {sorted(probe.call)} do not belong to the data; finetune without data"
        )
    denoiser = find_denoiser(teacher, component, probe.arguments(teacher, [0]))
    batch = largest_batch(teacher, probe.replace(samples=max(2, probe.samples)), BATCH_SIZE)
    call_signature = watch_call_signature(teacher, denoiser.component, probe, batches=batch > 1)
    objective = objective_of(schedulers(teacher)[0])
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
        self.stages = stages(distillation.teacher, student) if training.feature_kd_weight else {}
        self.cache: OutputCache | None = None
        count = len(distillation.examples)
        validation = min(MAX_VALIDATION_EXAMPLES, max(1, round(count * training.validation_fraction)))
        if validation >= count:
            raise FinetuningError(f"{count} examples are too few for training and validation; give at least 2")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(training.seed))
        self.validation, self.trained = order[:validation], order[validation:]

    def training_losses(self, module: nn.Module, generator: torch.Generator) -> Iterator[Tensor]:
        """The losses on this process's part of a random batch, one for each accumulation pass."""
        return (self._loss(module, batch) for batch in self._training_batches(generator))

    def validation_losses(self, module: nn.Module, generator: torch.Generator) -> Iterator[Tensor]:
        """The losses on this process's part of the validation examples."""
        return (self._loss(module, batch) for batch in self._validation_batches(generator))

    def cache_outputs(self, cache: OutputCache, steps: Iterable[torch.Generator], validation: torch.Generator) -> None:
        """Computes what the teacher gives for all steps and for a validation; from then on it is not called."""
        self.cache = cache
        for batch in self._validation_batches(validation):
            self._references(batch)
        for generator in steps:
            for batch in self._training_batches(generator):
                self._references(batch)

    def _training_batches(self, generator: torch.Generator) -> Iterator[Batch]:
        chosen = torch.randint(len(self.trained), (self.training.train_batch_size,), generator=generator)
        yield from self._batches(self.trained[chosen], generator)

    def _validation_batches(self, generator: torch.Generator) -> Iterator[Batch]:
        size, count = self.training.train_batch_size, len(self.validation)
        # whole batches, so that each process has a part: a few examples come twice, with other noise
        padded = self.validation[torch.arange(-(-count // size) * size) % count]
        for number, indices in enumerate(padded.split(size)):
            yield from self._batches(indices, generator, number)

    def _batches(self, indices: Tensor, generator: torch.Generator, number: int = 0) -> Iterator[Batch]:
        """This process's part of some examples, for each accumulation pass; noise is sampled for all of them."""
        distillation, training, accelerator = self.distillation, self.training, self.accelerator
        low, high = training.guidance_interval
        copies = torch.multinomial(distillation.copy_shares, len(indices), replacement=True, generator=generator)
        levels = random_levels(len(indices), generator)
        noise = torch.randn((len(indices), *distillation.examples.shape), generator=generator)
        part = torch.arange(accelerator.process_index, len(indices), accelerator.num_processes)
        passes = training.gradient_accumulation_steps
        for place, chosen in enumerate(part.chunk(passes)):
            latents, conditions = distillation.examples.batch(indices[chosen], copies[chosen])
            noisy, target, times = distillation.add_noise(latents, noise[chosen], levels[chosen])
            is_guided = (low <= levels[chosen]) & (levels[chosen] <= high)
            guidance = (training.autoguidance_scale * is_guided).reshape(-1, *[1] * (latents.ndim - 1))
            weights = distillation.objective.weights(times) if training.snr_weighting else torch.ones(len(times))
            tensors = tree_map(self._on_device, ((noisy, times, conditions), target, weights, guidance))
            process = f"{accelerator.process_index}of{accelerator.num_processes}"
            yield Batch(f"{generator.initial_seed()}-{number}-{process}-{place}of{passes}", *tensors)

    def _on_device(self, tensor: Tensor) -> Tensor:
        device = self.accelerator.device
        if device.type != "cuda" or tensor.is_cuda:
            return tensor.to(device)
        # a copy from memory that is not pinned waits until the device has finished all earlier work
        return tensor.pin_memory().to(device, non_blocking=True)

    def _references(self, batch: Batch) -> Tensor:
        """What the teacher, and the weak model where there is one, give for a batch, [networks, batch, ...]."""

        def predict() -> Tensor:
            networks = [self.distillation.teacher, *([self.weak_model] if self.weak_model is not None else [])]
            with self.accelerator.autocast():
                return torch.stack([self.distillation.predict(network, *batch.inputs) for network in networks])

        if self.cache is None:
            return predict()
        return self.cache.get(batch.key, lambda: predict().cpu()).to(batch.target.device)

    def _loss(self, module: nn.Module, batch: Batch) -> Tensor:
        training, target = self.training, batch.target
        with (
            self.accelerator.autocast(),
            force_eager(),  # compiled networks may not call hooks
            features_of(self.distillation.teacher, self.stages) as teacher_features,
            features_of(self.student, self.stages.values()) as student_features,
        ):
            output = self._output(module, *batch.inputs)
            if not training.needs_teacher:
                return (training.task_loss_weight or 0.0) * latent_loss(output, target, batch.weights)
            teacher_output, *weak_output = self._references(batch)
            for weak in weak_output:
                shift = batch.guidance * (teacher_output - weak)
                target, teacher_output = target + shift, teacher_output + shift
            loss = (training.task_loss_weight or 0.0) * latent_loss(output, target, batch.weights)
            loss = loss + training.output_kd_weight * latent_loss(output, teacher_output, batch.weights)
            return loss + (training.feature_kd_weight or 0.0) * feature_loss(
                teacher_features, student_features, normalize=training.normalize_features
            )

    def _output(self, module: nn.Module, noisy: Tensor, times: Tensor, conditions: Sequence[Tensor]) -> Tensor:
        """The student's output in full precision; its weights are in full precision too, unless they are frozen."""
        inputs = noisy.to(self._student_dtype)
        return predicted(
            module(**self.distillation.call_signature.arguments(inputs, times, conditions)), noisy
        ).float()

    @cached_property
    def _student_dtype(self) -> torch.dtype:
        return module_dtype(self.student)
