"""The teacher, and what it teaches with: examples, how it is called, and what is to be found in noisy latents."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from ldpruner.errors import FinetuningError, one_line
from ldpruner.finetuning.conditioning import CallSignature, predicted, watch_call_signature
from ldpruner.finetuning.dataset import Rows
from ldpruner.finetuning.examples import Examples, Source
from ldpruner.finetuning.objectives import Objective, objective_of, random_levels
from ldpruner.operators.patching import MISFITS
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.fingerprints import precision
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import schedulers
from ldpruner.pipelines.sampling import largest_batch
from ldpruner.profiling.costs import device_of

BATCH_SIZE = 16  # samples of the teacher drawn at once
REHEARSED = 8  # examples on which the teacher is tried
UNGUIDED = 0.2  # of the examples, under classifier-free guidance; its authors use 0.1 to 0.2 (Ho and Salimans 2022)


@dataclass(frozen=True)
class Distillation:
    """The teacher, and what it teaches with.

    Attributes:
        component: the denoiser's name in the pipeline.
        teacher: the denoiser.
        conditions: how it is called.
        objective: what noise does to latents.
        examples: what is learnt from.
        sign: -1 where the pipeline turns round what the denoiser finds.
    """

    component: str
    teacher: nn.Module
    conditions: CallSignature
    objective: Objective
    examples: Examples
    sign: float = 1.0

    @property
    def copies(self) -> int:
        """Ways in which each example is asked for: 2 under classifier-free guidance."""
        return self.conditions.copies * self.conditions.calls

    def noised(self, clean: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, what the denoiser is to find in them, and the scheduler's timesteps."""
        noisy, target, times = self.objective.noised(clean, noise, levels)
        return noisy, self.sign * target, times

    @cached_property
    def shares(self) -> Tensor:
        """How often each copy is learnt from: those that are given the same whatever the sample, less often."""
        first = self.examples.chunks[0]
        alike = torch.ones(self.copies, dtype=torch.bool)
        for name in self.examples.names:
            alike &= (first[name] == first[name][:1]).flatten(2).all(2).all(0)
        if alike.all() or not alike.any():
            return torch.full((self.copies,), 1 / self.copies)
        return torch.where(alike, UNGUIDED / alike.sum(), (1 - UNGUIDED) / (~alike).sum())

    @torch.no_grad()
    def shown(self, network: nn.Module, noisy: Tensor, times: Tensor, given: Sequence[Tensor]) -> Tensor:
        """What a network that is not trained finds in noisy latents, in full precision."""
        noisy = noisy.to(dtype=precision(network))
        return predicted(network(**self.conditions.arguments(noisy, times, given)), noisy).float()

    def validate_teacher(self, pipeline: str) -> "Distillation":
        """Tries the teacher on some examples, and finds out the sign of what it finds.

        Raises:
            FinetuningError: it cannot be called on noised latents.
        """
        generator = torch.Generator().manual_seed(0)
        chosen = torch.arange(REHEARSED) % len(self.examples)
        latents, given = self.examples.batch(chosen, torch.zeros_like(chosen))
        noise, levels = torch.randn(latents.shape, generator=generator), random_levels(REHEARSED, generator)
        noisy, target, times = self.objective.noised(latents, noise, levels)
        try:
            found = self.shown(self.teacher, noisy.to(device_of(self.teacher)), times, given).cpu()
        except MISFITS as error:
            raise FinetuningError(f"{pipeline} cannot be finetuned yet: {one_line(error)}") from error
        is_turned = mse_loss(-found, target) < 0.5 * mse_loss(found, target)
        return replace(self, sign=-1.0 if is_turned else 1.0)


def prepare_distillation(
    teacher: DiffusionPipeline, rows: Rows | None, probe: Probe, component: str | None, folder: Path | None
) -> Distillation:
    """Watches the teacher, and draws or encodes what it teaches with into a folder.

    Raises:
        FinetuningError: the pipeline or the data do not fit.
    """
    probe = probe.completed(teacher)
    if rows is not None and any("image" in name for name in probe.call):
        raise FinetuningError(
            f"the probe's images {sorted(probe.call)} do not belong to the data; finetune without data"
        )
    denoiser = find_denoiser(teacher, component, probe.arguments(teacher, [0]))
    batch = largest_batch(teacher, probe.model_copy(update={"samples": max(2, probe.samples)}), BATCH_SIZE)
    conditions = watch_call_signature(teacher, denoiser.component, probe, batches=batch > 1)
    objective = objective_of(schedulers(teacher)[0])
    source = Source(teacher, denoiser.component, conditions, probe, batch, rows)
    examples = source.examples(folder / "examples" if folder is not None else None)
    distillation = Distillation(denoiser.component, denoiser.module, conditions, objective, examples)
    return distillation.validate_teacher(type(teacher).__name__)
