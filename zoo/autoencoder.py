"""The autoencoder of a zoo model: images to latents and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, l1_loss

from zoo.data import to_signal
from zoo.training import Loss

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeAlias

    from zoo.data import Augmentation

    ImageLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # of reconstructions and their targets


def build_autoencoder(settings: Mapping[str, Any], seed: int) -> AutoencoderKL:
    """An untrained autoencoder, initialised from `seed`.

    Each residual branch starts at zero, and the layers outside of them keep the variance, so that the network starts
    as a chain of plain convolutions. With the default initialisation it is slow to learn colour.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        autoencoder = AutoencoderKL(**settings)
        for module in autoencoder.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        for module in autoencoder.modules():
            if isinstance(module, ResnetBlock2D):
                nn.init.zeros_(module.conv2.weight)
    return autoencoder


def latent_shape(settings: Mapping[str, Any], pixels: Tensor) -> tuple[int, ...]:
    """Channels, height and width of the latents of images, [samples, channels, height, width]."""
    halvings = len(settings["block_out_channels"]) - 1
    return (settings.get("latent_channels", 4), *(side // 2**halvings for side in pixels.shape[-2:]))


def reconstruction(
    pixels: Tensor, augment: Augmentation, shape: Sequence[int], kl_weight: float, image_loss: ImageLoss
) -> Loss:
    """The loss of an autoencoder: that of its reconstructions, and the weighted KL divergence of its posterior.

    `pixels` are bytes, [samples, channels, height, width], and `shape` is that of their latents.
    """

    def sample(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(pixels), (batch,), generator=generator)
        target = augment(to_signal(pixels[chosen]), generator).contiguous(memory_format=torch.channels_last)
        return target, torch.randn((batch, *shape), generator=generator)

    def value(module: nn.Module, target: Tensor, noise: Tensor) -> Tensor:
        posterior = module.encode(target).latent_dist  # type: ignore[operator]
        output = module.decode(posterior.mean + posterior.std * noise).sample  # type: ignore[operator]
        penalty: Tensor = kl_weight * posterior.kl().mean()
        return image_loss(output, target) + penalty

    return Loss(sample, value)


def difference(output: Tensor, target: Tensor, detail_weight: float, texture_weight: float) -> Tensor:
    """Absolute error of images at three resolutions and of their colours, plus weighted detail and texture."""
    total = l1_loss(output, target)
    if target.shape[1] > 1:
        total = total + l1_loss(_colour(output), _colour(target))
    for side in (4, 8):
        total = total + l1_loss(avg_pool2d(output, side), avg_pool2d(target, side))
    for band, target_band in zip(laplacian_bands(output, 2), laplacian_bands(target, 2), strict=True):
        total = total + detail_weight * l1_loss(band, target_band)
        total = total + texture_weight * l1_loss(_energy(band), _energy(target_band))
    return total


def _colour(images: Tensor) -> Tensor:
    """Red and blue, each less green: with an absolute error alone they are learned last."""
    return images[:, ::2] - images[:, 1:2]


def laplacian_bands(images: Tensor, levels: int) -> list[Tensor]:
    """The finest `levels` bands of a Laplacian pyramid: the loss when an image is halved and enlarged again."""
    bands = []
    for _ in range(levels):
        coarse = avg_pool2d(images, 2)
        bands.append(images - interpolate(coarse, scale_factor=2.0, mode="bilinear"))
        images = coarse
    return bands


def _energy(band: Tensor) -> Tensor:
    # An absolute error alone prefers a blur. Detail whose place is lost shall at least keep its strength.
    return (avg_pool2d(band.square(), 8) + 1e-6).sqrt()


@torch.no_grad()
def encode(autoencoder: AutoencoderKL, pixels: Tensor, batch: int = 250) -> Tensor:
    """Posterior means of images, not yet scaled: [samples, latent channels, height, width]."""
    parts = (to_signal(part).to(autoencoder.device) for part in pixels.split(batch))
    return torch.cat([autoencoder.encode(part).latent_dist.mean.cpu() for part in parts])


@torch.no_grad()
def decode(autoencoder: AutoencoderKL, latents: Tensor, batch: int = 250) -> Tensor:
    """Images in -1 to 1 from unscaled latents."""
    parts = (part.to(autoencoder.device) for part in latents.split(batch))
    return torch.cat([autoencoder.decode(part).sample.cpu() for part in parts])
