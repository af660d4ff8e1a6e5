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

    from zoo.data import Change

    Difference: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # of rebuilt images and those they should be


def build_autoencoder(settings: Mapping[str, Any], seed: int) -> AutoencoderKL:
    """An untrained autoencoder, its random start fixed by `seed`.

    Each residual branch starts at zero, and what lies outside of them keeps the variance, so that the network starts
    as a chain of plain convolutions. With the usual start it is slow to learn colour.
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
    pixels: Tensor, change: Change, shape: Sequence[int], divergence: float, differs: Difference
) -> Loss:
    """The loss of an autoencoder: how much images differ that it rebuilds, and the divergence of its posterior.

    `pixels` are bytes, [samples, channels, height, width]; `change` varies what is drawn of them. `shape` is that of
    their latents.
    """

    def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(pixels), (batch,), generator=generator)
        target = change(to_signal(pixels[chosen]), generator).contiguous(memory_format=torch.channels_last)
        return target, torch.randn((batch, *shape), generator=generator)

    def value(module: nn.Module, target: Tensor, noise: Tensor) -> Tensor:
        posterior = module.encode(target).latent_dist  # type: ignore[operator]
        output = module.decode(posterior.mean + posterior.std * noise).sample  # type: ignore[operator]
        penalty: Tensor = divergence * posterior.kl().mean()
        return differs(output, target) + penalty

    return Loss(draw, value)


def difference(output: Tensor, target: Tensor, detail: float, texture: float) -> Tensor:
    """Absolute error of images at three resolutions and of their colours, plus weighted detail and texture."""
    total = l1_loss(output, target)
    if target.shape[1] > 1:
        total = total + l1_loss(_colour(output), _colour(target))
    for side in (4, 8):
        total = total + l1_loss(avg_pool2d(output, side), avg_pool2d(target, side))
    for band, wanted in zip(bands(output, 2), bands(target, 2), strict=True):
        total = total + detail * l1_loss(band, wanted)
        total = total + texture * l1_loss(_energy(band), _energy(wanted))
    return total


def _colour(images: Tensor) -> Tensor:
    """Red and blue, each less green: an absolute error alone leaves them to the last."""
    return images[:, ::2] - images[:, 1:2]


def bands(images: Tensor, levels: int) -> list[Tensor]:
    """The finest `levels` bands of a Laplacian pyramid: what is lost when an image is halved and enlarged again."""
    found = []
    for _ in range(levels):
        coarse = avg_pool2d(images, 2)
        found.append(images - interpolate(coarse, scale_factor=2.0, mode="bilinear"))
        images = coarse
    return found


def _energy(band: Tensor) -> Tensor:
    # An absolute error alone is least for a blur. Detail whose place cannot be kept shall at least keep its strength.
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
