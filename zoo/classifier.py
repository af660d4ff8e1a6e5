"""The feature network of labelled images: a small classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from zoo.data import to_signal
from zoo.features import FeatureNetwork, convolutions
from zoo.training import Loss

if TYPE_CHECKING:
    from zoo.data import Augmentation, Images
    from zoo.quality import ImageSets


class Classifier(FeatureNetwork):
    """Images in -1 to 1, [samples, channels, height, width], to logits, [samples, classes]."""

    def __init__(self, classes: tuple[str, ...], channels: int, seed: int) -> None:
        super().__init__()
        self.classes = classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = convolutions(channels)
            self.head = nn.Linear(self.num_features, len(classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


def classification(images: Images, augment: Augmentation) -> Loss:
    """The loss of a classifier: cross entropy on augmented images."""

    def sample(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(images), (batch,), generator=generator)
        augmented = augment(to_signal(images.pixels[chosen]), generator)
        return augmented.contiguous(memory_format=torch.channels_last), images.labels[chosen]

    def value(module: nn.Module, augmented: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(module(augmented), labels, label_smoothing=0.05)

    return Loss(sample, value)


@torch.no_grad()
def classify(classifier: Classifier, pixels: Tensor) -> Tensor:
    """Class probabilities of images given as bytes: [samples, classes]."""
    return torch.cat([classifier(to_signal(part)).softmax(1) for part in pixels.split(500)])


def accuracy(probabilities: Tensor, labels: Tensor) -> float:
    """The share of images whose most likely class is their own."""
    return float((probabilities.argmax(1) == labels).float().mean())


def classification_metrics(classifier: Classifier, sets: ImageSets, train: Images, test: Images) -> dict[str, Any]:
    """Accuracy and confidence of a classifier on real, reconstructed and sampled images."""
    sampled, real = classify(classifier, sets.samples), classify(classifier, test.pixels)
    shares = sampled.argmax(1).bincount(minlength=len(classifier.classes)) / len(sampled)
    return {
        "parameters": sum(parameter.numel() for parameter in classifier.parameters()),
        "features": classifier.num_features,
        "train_accuracy": accuracy(classify(classifier, train.pixels), train.labels),
        "test_accuracy": accuracy(real, test.labels),
        "reconstruction_accuracy": accuracy(classify(classifier, sets.reconstructions), test.labels),
        "test_confidence": float(real.amax(1).mean()),
        "sample_confidence": float(sampled.amax(1).mean()),
        "sample_confidence_median": float(sampled.amax(1).median()),
        "sample_classes": dict(zip(classifier.classes, shares.tolist(), strict=True)),
    }
