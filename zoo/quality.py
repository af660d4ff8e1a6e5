"""The quality of a zoo model: Frechet distances to the test images, with those of reference sets for comparison."""

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

    from zoo.features import FeatureNetwork


@dataclass(frozen=True)
class ImageSets:
    """The images that are compared, all bytes, [samples, channels, height, width].

    `reconstructions` are the test images after the autoencoder.
    """

    train: Tensor
    test: Tensor
    reconstructions: Tensor
    samples: Tensor


class _Features(nn.Module):
    """A feature network as torchmetrics takes it: bytes in, features out."""

    def __init__(self, network: FeatureNetwork) -> None:
        super().__init__()
        self.network, self.num_features = network, network.num_features

    def forward(self, pixels: Tensor) -> Tensor:
        # torchmetrics repeats the one channel of a grey image
        return self.network.features(to_signal(pixels[:, : self.network.channels]))


def frechet_distance(network: FeatureNetwork, real: Tensor, other: Tensor) -> float:
    """Frechet distance of two sets of images, bytes, in the features of a network.

    Source: Heusel et al. 2017, equation 6.
    """
    metric = FrechetInceptionDistance(feature=_Features(network))
    for pixels, is_real in ((real, True), (other, False)):
        for part in pixels.split(500):
            metric.update(part, real=is_real)
    return float(metric.compute())


def reference_sets(train: Tensor, test: Tensor, seed: int) -> dict[str, Tensor]:
    """Sets of as many images as test images, for comparison with a model's. All are bytes.

    `train`: random training images. `colours`: each test image as one flat colour, its mean. `noise`: independent
    uniform bytes.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(train), generator=generator)[: len(test)]
    flat = test.float().mean((2, 3), keepdim=True).round().to(torch.uint8)
    noise = torch.randint(0, 256, test.shape, generator=generator, dtype=torch.uint8)
    return {"train": train[chosen], "colours": flat.expand_as(test), "noise": noise}


def distances(network: FeatureNetwork, sets: ImageSets, seed: int) -> list[dict[str, Any]]:
    """The Frechet distance of samples, reconstructions and reference sets to the test images: rows of a card."""
    references = reference_sets(sets.train, sets.test, seed)
    own = {"train": references["train"], "reconstructions": sets.reconstructions, "samples": sets.samples}
    return [
        {"images": name, "count": len(images), "distance": frechet_distance(network, sets.test, images)}
        for name, images in (own | references).items()
    ]


def nearest_training_distance(pixels: Tensor, train: Tensor) -> float:
    """Root mean square distance of images, bytes, to the nearest training image: the median over all.

    Copies of training images have a smaller one than test images.
    """
    nearest = torch.cdist(pixels.flatten(1).float(), train.flatten(1).float()).amin(1)
    return float(nearest.median() / pixels[0].numel() ** 0.5)


def reconstructions(autoencoder: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Images, bytes, through an autoencoder and back."""
    return to_pixels(decode(autoencoder, encode(autoencoder, pixels)))


def signal_to_noise(real: Tensor, rebuilt: Tensor) -> float:
    """Mean over images of the peak signal-to-noise ratio, in decibels."""
    error = (real.float() - rebuilt.float()).square().mean((1, 2, 3)).clamp(min=1e-2)
    return float((10 * torch.log10(255**2 / error)).mean())
