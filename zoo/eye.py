"""The convolutions that look at an image, in every judge: where generated and real images are compared."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.data import to_signal

# channels and stride of each convolution
LAYERS = ((24, 2), (48, 1), (64, 2), (96, 1), (128, 2), (96, 1))


class Eye(nn.Module):
    """Images in -1 to 1, [samples, channels, height, width], to features, [samples, num_features].

    `body` is what a judge makes with `convolutions`; what it says of the features is its own.
    """

    num_features = LAYERS[-1][0]
    body: nn.Sequential

    def features(self, images: Tensor) -> Tensor:
        """What the judge bases its word on: [samples, num_features]."""
        found: Tensor = self.body(images).mean((2, 3))
        return found

    @property
    def channels(self) -> int:
        """Channels of the images it looks at."""
        return int(next(self.body.parameters()).shape[1])


def convolutions(channels: int) -> nn.Sequential:
    """The layers of an eye for images of `channels`."""
    layers: list[nn.Module] = []
    width = channels
    for found, stride in LAYERS:
        layers.append(nn.Conv2d(width, found, 3, stride=stride, padding=1, bias=False))
        layers.extend((nn.BatchNorm2d(found), nn.ReLU()))
        width = found
    return nn.Sequential(*layers)


@torch.no_grad()
def features_of(judge: Eye, pixels: Tensor) -> Tensor:
    """Features of images given as bytes: [samples, num_features]."""
    return torch.cat([judge.features(to_signal(part)) for part in pixels.split(500)])
