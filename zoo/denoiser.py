"""The denoiser of a zoo model: what it is, and what it learns from."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from zoo.training import Loss

if TYPE_CHECKING:
    from collections.abc import Mapping


def build_denoiser(settings: Mapping[str, Any], seed: int) -> UNet2DModel:
    """An untrained U-Net, its random start fixed by `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(**settings)


def denoising(latents: Tensor, scheduler: DDIMScheduler) -> Loss:
    """The loss of a denoiser: squared error of what it finds in noised `latents`.

    `latents` are scaled to unit deviation: [samples, channels, height, width]. Source: Ho et al. 2020, equation 14.
    """

    def value(module: nn.Module, noisy: Tensor, target: Tensor, times: Tensor) -> Tensor:
        return mse_loss(module(noisy, times).sample, target)

    return Loss(partial(drawn, latents, scheduler), value)


def drawn(
    latents: Tensor, scheduler: DDIMScheduler, batch: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Some of the latents, noised."""
    return noised(latents[torch.randint(len(latents), (batch,), generator=generator)], scheduler, generator)


def noised(clean: Tensor, scheduler: DDIMScheduler, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Latents with noise at random levels, what a denoiser shall find in them, and the levels: [samples].

    That is the noise, or the velocity (Salimans and Ho 2022, appendix D) if the scheduler steps by it.
    """
    count, levels = len(clean), scheduler.config.num_train_timesteps
    noise = torch.randn(clean.shape, generator=generator)
    # spread evenly, so that the loss of a step does not hang on which noise levels it happened to draw
    spread = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    times = (spread * levels).long().clamp(max=levels - 1)
    noisy = scheduler.add_noise(clean, noise, times).contiguous(memory_format=torch.channels_last)
    by_velocity = scheduler.config.prediction_type == "v_prediction"
    return noisy, scheduler.get_velocity(clean, noise, times) if by_velocity else noise, times
