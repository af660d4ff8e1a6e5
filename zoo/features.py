"""Feature networks: generated and real images are compared in their features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.data import to_signal

# channels and stride of each convolution
LAYERS = ((24, 2), (48, 1), (64, 2), (96, 1), (128, 2), (96, 1))


class FeatureNetwork(nn.Module):
    """Images in -1 to 1, [samples, channels, height, width], to features, [samples, num_features].

    A subclass makes `body` with `convolutions`, and adds the head that it is trained with, on the training split.
    """

    num_features = LAYERS[-1][0]
    body: nn.Sequential

    def features(self, images: Tensor) -> Tensor:
        """The features before the head: [samples, num_features]."""
        features: Tensor = self.body(images).mean((2, 3))
        return features

    @property
    def channels(self) -> int:
        """Channels of its images."""
        return int(next(self.body.parameters()).shape[1])


def convolutions(channels: int) -> nn.Sequential:
    """The body of a feature network for images of `channels`."""
    layers: list[nn.Module] = []
    for width, stride in LAYERS:
        layers.append(nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False))
        layers.extend((nn.BatchNorm2d(width), nn.ReLU()))
        channels = width
    return nn.Sequential(*layers)


@torch.no_grad()
def features_of(network: FeatureNetwork, pixels: Tensor) -> Tensor:
    """Features of images given as bytes: [samples, num_features]."""
    return torch.cat([network.features(to_signal(part)) for part in pixels.split(500)])
