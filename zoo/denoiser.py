"""The denoiser of a zoo model, and its loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from ldpruner.finetuning.objectives import objective_of, random_levels
from zoo.training import Loss

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diffusers import DDIMScheduler


def build_denoiser(settings: Mapping[str, Any], seed: int) -> UNet2DModel:
    """An untrained U-Net, initialised from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(**settings)


def denoising(latents: Tensor, scheduler: DDIMScheduler) -> Loss:
    """The loss of a denoiser: squared error of its prediction on noised `latents`.

    `latents` are scaled to unit deviation: [samples, channels, height, width]. Source: Ho et al. 2020, equation 14.
    """

    def sample(batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        chosen = torch.randint(len(latents), (batch,), generator=generator)
        return add_noise(latents[chosen], scheduler, generator)

    def value(module: nn.Module, noisy: Tensor, target: Tensor, times: Tensor) -> Tensor:
        return mse_loss(module(noisy, times).sample, target)

    return Loss(sample, value)


def add_noise(clean: Tensor, scheduler: DDIMScheduler, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Latents with noise at random levels, the target of the prediction, and the timesteps, [samples]."""
    noise = torch.randn(clean.shape, generator=generator)
    noisy, target, times = objective_of(scheduler).add_noise(clean, noise, random_levels(len(clean), generator))
    return noisy.contiguous(memory_format=torch.channels_last), target, times
