"""Sampling from the pipelines of the zoo."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from diffusers import LDMPipeline
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import AudioDiffusionPipeline, DiffusionPipeline, StableDiffusionPipeline

Network = TypeVar("Network", bound=nn.Module)


def in_half_precision(network: Network) -> Network:
    """A copy in half precision and in the memory format of files."""
    return copy.deepcopy(network).to(dtype=torch.float16, memory_format=torch.contiguous_format)  # type: ignore[call-overload, no-any-return]


def pixels_of(images: Any) -> Tensor:
    """The images of a pipeline's output as bytes: [samples, channels, height, width].

    They are an array in 0 to 1, [samples, height, width, channels], or a list of pictures.
    """
    if isinstance(images, np.ndarray):
        return (torch.from_numpy(images).permute(0, 3, 1, 2) * 255).round().to(torch.uint8)
    arrays = torch.stack([torch.from_numpy(np.array(picture)) for picture in images])
    return arrays[:, None] if arrays.ndim == 3 else arrays.permute(0, 3, 1, 2)


def seeded(first: int, count: int) -> list[torch.Generator]:
    """One generator for each sample: sample i comes from seed i whatever the batch."""
    return [torch.Generator().manual_seed(seed) for seed in range(first, first + count)]


def sample(pipeline: LDMPipeline, count: int, steps: int, batch: int = 100) -> Tensor:
    """Samples, sample i from seed i: bytes, [count, channels, height, width]."""
    pipeline.set_progress_bar_config(disable=True)
    parts = []
    for first in range(0, count, batch):
        size = min(batch, count - first)
        output = pipeline(
            batch_size=size, generator=seeded(first, size), num_inference_steps=steps, output_type="numpy"
        )
        parts.append(pixels_of(output.images))
    return torch.cat(parts)


def sample_captioned(
    pipeline: StableDiffusionPipeline, captions: Sequence[str], steps: int, guidance: float, batch: int = 100
) -> Tensor:
    """One picture for each caption, picture i from seed i: bytes, [captions, 3, height, width]."""
    pipeline.set_progress_bar_config(disable=True)
    parts = []
    for first in range(0, len(captions), batch):
        prompts = list(captions[first : first + batch])
        output = pipeline(
            prompts,
            generator=seeded(first, len(prompts)),
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type="np",
        )
        parts.append(pixels_of(output.images))
    return torch.cat(parts)


def without_sound(pipeline: AudioDiffusionPipeline) -> LDMPipeline:
    """A pipeline that samples the same mel pictures without the sound, which takes far longer."""
    side = pipeline.unet.config.sample_size
    if not isinstance(side, int):  # its first call makes a pair of it
        pipeline.unet.register_to_config(sample_size=side[0])
    return LDMPipeline(vqvae=pipeline.vqvae, unet=pipeline.unet, scheduler=pipeline.scheduler)


def autoencoder_of(pipeline: DiffusionPipeline) -> Any:
    """The autoencoder of any of the pipelines."""
    parts = pipeline.components
    return parts["vae"] if "vae" in parts else parts["vqvae"]
