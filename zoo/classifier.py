"""A judge of labelled images: a small classifier of the training data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from zoo.data import to_signal
from zoo.eye import Eye, convolutions
from zoo.training import Loss

if TYPE_CHECKING:
    from zoo.data import Change, Images
    from zoo.quality import Shown


class Classifier(Eye):
    """Images in -1 to 1, [samples, channels, height, width], to one score per class, [samples, classes]."""

    def __init__(self, classes: tuple[str, ...], channels: int, seed: int) -> None:
        super().__init__()
        self.classes = classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = convolutions(channels)
            self.head = nn.Linear(self.num_features, len(classes))

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.features(images))
        return scores


def classification(images: Images, change: Change) -> Loss:
    """The loss of a classifier: cross entropy on images, each varied by `change`."""

    def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(images), (batch,), generator=generator)
        seen = change(to_signal(images.pixels[chosen]), generator)
        return seen.contiguous(memory_format=torch.channels_last), images.labels[chosen]

    def value(module: nn.Module, seen: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(module(seen), labels, label_smoothing=0.05)

    return Loss(draw, value)


@torch.no_grad()
def classify(judge: Classifier, pixels: Tensor) -> Tensor:
    """Class probabilities of images given as bytes: [samples, classes]."""
    parts = [judge(to_signal(part)).softmax(1) for part in pixels.split(500)]
    return torch.cat(parts)


def accuracy(probabilities: Tensor, labels: Tensor) -> float:
    """The share of images whose likeliest class is their own."""
    return float((probabilities.argmax(1) == labels).float().mean())


def verdicts(judge: Classifier, shown: Shown, train: Images, test: Images) -> dict[str, Any]:
    """What a judge thinks of real, rebuilt and sampled images."""
    seen, real = classify(judge, shown.samples), classify(judge, test.pixels)
    votes = seen.argmax(1).bincount(minlength=len(judge.classes)) / len(seen)
    return {
        "parameters": sum(parameter.numel() for parameter in judge.parameters()),
        "features": judge.num_features,
        "train_accuracy": accuracy(classify(judge, train.pixels), train.labels),
        "test_accuracy": accuracy(real, test.labels),
        "reconstruction_accuracy": accuracy(classify(judge, shown.rebuilt), test.labels),
        "test_confidence": float(real.amax(1).mean()),
        "sample_confidence": float(seen.amax(1).mean()),
        "sample_confidence_median": float(seen.amax(1).median()),
        "sample_classes": dict(zip(judge.classes, votes.tolist(), strict=True)),
    }
