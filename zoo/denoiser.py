"""The denoiser of a zoo model, and the pipeline that it ships in."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, LDMPipeline, UNet2DModel
from torch import Tensor, nn
from torch.nn.functional import mse_loss

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from zoo.training import Loss


def build_denoiser(settings: Mapping[str, Any], seed: int) -> UNet2DModel:
    """An untrained U-Net, its random start fixed by `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(**settings)


def noise_prediction(latents: Tensor, scheduler: DDIMScheduler) -> Loss:
    """The loss of a denoiser: squared error of the noise it finds in noised `latents`.

    `latents` are scaled to unit deviation: [samples, channels, height, width]. Source: Ho et al. 2020, equation 14.
    """
    levels = scheduler.config.num_train_timesteps

    def loss(module: nn.Module, batch: int, generator: torch.Generator) -> Tensor:
        clean = latents[torch.randint(len(latents), (batch,), generator=generator)]
        noise = torch.randn(clean.shape, generator=generator)
        # spread evenly, so that the loss of a step does not hang on which noise levels it happened to draw
        spread = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        times = (spread * levels).long().clamp(max=levels - 1)
        noisy = scheduler.add_noise(clean, noise, times)
        found = module(noisy.contiguous(memory_format=torch.channels_last), times).sample
        return mse_loss(found, noise)

    return loss


def export(folder: Path, denoiser: UNet2DModel, autoencoder: AutoencoderKL, scheduler: DDIMScheduler) -> None:
    """Write a diffusers pipeline folder with weights in half precision."""
    parts = [
        copy.deepcopy(part).to(dtype=torch.float16, memory_format=torch.contiguous_format)
        for part in (autoencoder, denoiser)
    ]
    pipeline = LDMPipeline(vqvae=parts[0], unet=parts[1], scheduler=scheduler)
    pipeline.save_pretrained(folder)


def sample(folder: Path, count: int, steps: int, batch: int = 100) -> Tensor:
    """Images of the exported pipeline, sample i from seed i: [count, channels, height, width], bytes."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    found = []
    for first in range(0, count, batch):
        seeds = range(first, min(first + batch, count))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images = pipeline(
            batch_size=len(seeds),
            generator=generators,
            num_inference_steps=steps,
            output_type="numpy",
        ).images
        found.append(torch.from_numpy(images).permute(0, 3, 1, 2))
    return (torch.cat(found) * 255).round().to(torch.uint8)
