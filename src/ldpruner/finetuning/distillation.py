"""Distillation: the teacher, the examples, and the losses of a student."""

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

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
from ldpruner.finetuning.settings import FEW_STEPS, Training
from ldpruner.finetuning.teacher import OutputCache
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
    teacher: DiffusionPipeline,
    rows: Rows | None,
    probe: Probe,
    component: str | None,
    folder: Path | None,
    timesteps: Literal["all", "pipeline"] | None = None,
) -> Distillation:
    """Watches how the teacher is called, and samples or encodes the examples into a folder.

    Args:
        teacher, probe, component: the original, how it is called, and which network.
        rows: the data; None samples from the teacher.
        folder: for the examples; None keeps them in memory.
        timesteps: see `Training`; None takes the teacher's own calls where these cannot be noised.

    Raises:
        FinetuningError: the pipeline or the data do not fit.
    """
    probe = probe.completed(teacher)
    if timesteps == "pipeline" and rows is not None:
        raise FinetuningError(
            "timesteps='pipeline' learns from the original's own calls, not from data; leave out the data"
        )
    denoiser = find_denoiser(teacher, component, probe.arguments(teacher, [0]))
    reason = "timesteps='pipeline'"
    if probe.steps <= FEW_STEPS:
        reason = f"{probe.steps} steps are those of a few-step model; timesteps='all' learns at all noise levels"
    if timesteps != "pipeline":
        try:
            return _prepare(teacher, denoiser, rows, probe, folder)
        except FinetuningError as error:
            if rows is not None or timesteps == "all":
                raise
            reason = str(error).partition(f"; {UNSUPPORTED}")[0]
    logger.warning("the original's own calls, at the pipeline's timesteps, are the examples: %s", reason)
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
        self.cache: OutputCache | None = None
        count = len(distillation.examples)
        validation = min(MAX_VALIDATION_EXAMPLES, max(1, round(count * training.validation_fraction)))
        if validation >= count:
            raise FinetuningError(f"{count} examples are too few for training and validation; give at least 2")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(training.seed))
        self.validation, self.trained = order[:validation], order[validation:]

    def training_losses(self, module: nn.Module, generator: torch.Generator) -> Iterator[Tensor]:
        """The losses on this process's part of a random batch, one for each accumulation pass."""
        return (self._mean_loss(module, batches) for batches in self._training_passes(generator))

    def validation_losses(self, module: nn.Module, generator: torch.Generator) -> Iterator[Tensor]:
        """The losses on this process's part of the validation examples."""
        return (self._mean_loss(module, batches) for batches in self._validation_passes(generator))

    def cache_outputs(self, cache: OutputCache, steps: Iterable[torch.Generator], validation: torch.Generator) -> None:
        """Computes what the teacher gives for all steps and for a validation; from then on it is not called."""
        self.cache = cache
        passes = (self._validation_passes(validation), *map(self._training_passes, steps))
        for batch in itertools.chain.from_iterable(itertools.chain.from_iterable(passes)):
            self._references(batch)

    def _training_passes(self, generator: torch.Generator) -> Iterator[list[Batch]]:
        chosen = torch.randint(len(self.trained), (self.training.train_batch_size,), generator=generator)
        yield from self._passes(self.trained[chosen], generator)

    def _validation_passes(self, generator: torch.Generator) -> Iterator[list[Batch]]:
        size, count = self.training.train_batch_size, len(self.validation)
        # whole batches, so that each process has a part: a few examples come twice, with other noise
        padded = self.validation[torch.arange(-(-count // size) * size) % count]
        for number, indices in enumerate(padded.split(size)):
            yield from self._passes(indices, generator, number)

    def _passes(self, indices: Tensor, generator: torch.Generator, number: int = 0) -> Iterator[list[Batch]]:
        """This process's part of some examples, for each accumulation pass; noise is sampled for all of them."""
        distillation, accelerator = self.distillation, self.accelerator
        copies = torch.multinomial(distillation.copy_shares, len(indices), replacement=True, generator=generator)
        levels = distillation.levels(len(indices), generator)
        noise = torch.randn((len(indices), *distillation.examples.shape), generator=generator)
        part = torch.arange(accelerator.process_index, len(indices), accelerator.num_processes)
        passes = self.training.gradient_accumulation_steps
        process = f"{accelerator.process_index}of{accelerator.num_processes}"
        for place, chosen in enumerate(part.chunk(passes)):
            key = f"{generator.initial_seed()}-{number}-{process}-{place}of{passes}"
            groups = [chosen[group] for group in distillation.examples.groups(indices[chosen], copies[chosen])]
            yield [
                self._batch(f"{key}-{count}", indices[group], copies[group], noise[group], levels[group])
                for count, group in enumerate(groups)
            ]

    def _batch(self, key: str, indices: Tensor, copies: Tensor, noise: Tensor, levels: Tensor) -> Batch:
        """Examples that run together, with noise [batch, ...] at noise levels [batch]."""
        distillation, training = self.distillation, self.training
        low, high = training.guidance_interval
        latents, conditions = distillation.examples.batch(indices, copies)
        noisy, target, times = distillation.add_noise(latents, noise, levels)
        is_guided = (low <= levels) & (levels <= high)
        guidance = (training.autoguidance_scale * is_guided).reshape(-1, *[1] * (latents.ndim - 1))
        weights = distillation.objective.weights(times) if training.snr_weighting else torch.ones(len(times))
        tensors = ((noisy, times, conditions), target, weights, guidance)
        return Batch(key, *tree_map_only(Tensor, self._on_device, tensors))

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

    def _mean_loss(self, module: nn.Module, batches: Sequence[Batch]) -> Tensor:
        sizes = [len(batch.weights) for batch in batches]
        losses = [self._loss(module, batch) * size for batch, size in zip(batches, sizes, strict=True)]
        return torch.stack(losses).sum() / sum(sizes)

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

    def _output(self, module: nn.Module, noisy: Tensor, times: Tensor, conditions: Sequence[Any]) -> Tensor:
        """The student's output in full precision; its weights are in full precision too, unless they are frozen."""
        signature = self.distillation.call_signature
        output = module(**signature.arguments(noisy.to(self._student_dtype), times, conditions))
        return signature.prediction(output, noisy)

    @cached_property
    def _student_dtype(self) -> torch.dtype:
        return module_dtype(self.student)
