"""A perceptual loss: with it an autoencoder learns texture that an absolute error blurs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, normalize

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDTHS = (24, 48, 96, 128)  # of the features, from full resolution downwards
GROUPS = 8
CELLS = 4  # along a side; features are also compared on average over each cell


class PerceptualNetwork(nn.Module):
    """A classifier for the perceptual loss: images in -1 to 1, [samples, 3, height, width], to [samples, classes].

    It halves by averaging: a stride would weigh some pixels more than others, and leave its grid in the images of an
    autoencoder that is trained with it.
    """

    def __init__(self, classes: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            widths = zip((3, *WIDTHS), WIDTHS, strict=False)
            self.levels = nn.ModuleList(_level(before, width) for before, width in widths)
            self.head = nn.Linear(WIDTHS[-1], classes)

    def features(self, images: Tensor) -> Iterator[Tensor]:
        """Features from the finest to the coarsest resolution: [samples, width, height, width]."""
        for level in self.levels:
            images = level(images)
            yield images
            images = avg_pool2d(images, 2)

    def forward(self, images: Tensor) -> Tensor:
        *_, last = self.features(images)
        logits: Tensor = self.head(last.mean((2, 3)))
        return logits

    def difference(self, output: Tensor, target: Tensor) -> Tensor:
        """Squared difference of the features of two batches of images, by pixel and on average over each cell.

        Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric".
        """
        total = output.new_zeros(())
        for features in self.features(torch.cat([output, target])):
            output_features, target_features = normalize(features, dim=1).chunk(2)
            error = output_features - target_features
            cells = adaptive_avg_pool2d(error, CELLS)
            total = total + error.square().sum(1).mean() + cells.square().sum(1).mean()
        return total


def _level(before: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, width):
        layers.extend((nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(GROUPS, width), nn.SiLU()))
    return nn.Sequential(*layers)
