"""How good a zoo model is: the Frechet distance of its samples to test images, beside yardsticks of the same code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from zoo.autoencoder import decode, encode
from zoo.data import to_pixels, to_signal

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from zoo.eye import Eye


@dataclass(frozen=True)
class Shown:
    """The images that a model is judged by, all bytes, [samples, channels, height, width].

    `rebuilt` are the test images after the autoencoder.
    """

    train: Tensor
    test: Tensor
    rebuilt: Tensor
    samples: Tensor


class _Features(nn.Module):
    """The judge as torchmetrics wants it: bytes in, features out."""

    def __init__(self, judge: Eye) -> None:
        super().__init__()
        self.judge, self.num_features = judge, judge.num_features

    def forward(self, pixels: Tensor) -> Tensor:
        # torchmetrics repeats the one channel of a grey image
        return self.judge.features(to_signal(pixels[:, : self.judge.channels]))


def frechet_distance(judge: Eye, real: Tensor, other: Tensor) -> float:
    """Frechet distance of two sets of images, bytes, in the features of `judge`.

    Source: Heusel et al. 2017, equation 6.
    """
    metric = FrechetInceptionDistance(feature=_Features(judge))
    for pixels, is_real in ((real, True), (other, False)):
        for part in pixels.split(500):
            metric.update(part, real=is_real)
    return float(metric.compute())


def yardsticks(train: Tensor, test: Tensor, seed: int) -> dict[str, Tensor]:
    """Sets of images, as many as test images, that a model should come near to or stay away from. All are bytes.

    `train`: real training images, drawn at random. `colours`: each test image as one flat colour, its mean.
    `noise`: independent uniform bytes.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(train), generator=generator)[: len(test)]
    flat = test.float().mean((2, 3), keepdim=True).round().to(torch.uint8)
    noise = torch.randint(0, 256, test.shape, generator=generator, dtype=torch.uint8)
    return {"train": train[chosen], "colours": flat.expand_as(test), "noise": noise}


def distances(judge: Eye, shown: Shown, seed: int) -> list[dict[str, Any]]:
    """The Frechet distance of samples, reconstructions and yardsticks to the test images, as rows of a card."""
    sticks = yardsticks(shown.train, shown.test, seed)
    sets = {"train": sticks["train"], "reconstructions": shown.rebuilt, "samples": shown.samples} | sticks
    return [
        {"images": name, "count": len(images), "distance": frechet_distance(judge, shown.test, images)}
        for name, images in sets.items()
    ]


def remoteness(pixels: Tensor, train: Tensor) -> float:
    """How far images, bytes, are from the nearest training image: root mean square, in bytes, the median of all.

    Samples that copy the training images are nearer to them than test images are.
    """
    near = torch.cdist(pixels.flatten(1).float(), train.flatten(1).float()).amin(1)
    return float(near.median() / pixels[0].numel() ** 0.5)


def reconstructions(autoencoder: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Images, bytes, through an autoencoder and back."""
    return to_pixels(decode(autoencoder, encode(autoencoder, pixels)))


def signal_to_noise(real: Tensor, rebuilt: Tensor) -> float:
    """Mean over images of the peak signal-to-noise ratio, in decibels."""
    error = (real.float() - rebuilt.float()).square().mean((1, 2, 3)).clamp(min=1e-2)
    return float((10 * torch.log10(255**2 / error)).mean())
