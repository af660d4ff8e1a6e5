"""Frechet distances, feature networks, and retrieval."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from tests.zoo.conftest import CAPTIONS
from zoo.captions import Captioned
from zoo.classifier import Classifier
from zoo.data import Images, to_signal
from zoo.feature_network import read_feature_network, write_feature_network
from zoo.features import features_of
from zoo.matcher import Matcher, vocabulary
from zoo.quality import frechet_distance, nearest_training_distance
from zoo.retrieval import retrieval


def test_the_frechet_distance_agrees_with_scipy(images: Images) -> None:
    network = Classifier(images.classes, channels=3, seed=0).eval()
    generator = torch.Generator().manual_seed(5)
    real, other = ((torch.rand(300, 3, 16, 16, generator=generator) * top).to(torch.uint8) for top in (256, 200))

    expected = independent_distance(network, real, other)
    assert frechet_distance(network, real, other) == pytest.approx(expected, rel=1e-2)
    assert frechet_distance(network, images.pixels, images.pixels) == pytest.approx(0, abs=1e-4)


def independent_distance(network: Classifier, real: Tensor, other: Tensor) -> float:
    with torch.no_grad():
        first, second = (network.features(to_signal(pixels)).double().numpy() for pixels in (real, other))
    covariances = [np.cov(features, rowvar=False) for features in (first, second)]
    product = np.real(sqrtm(covariances[0] @ covariances[1]))
    gap = first.mean(0) - second.mean(0)
    return float(gap @ gap + np.trace(covariances[0] + covariances[1] - 2 * product))


def test_copies_of_training_images_are_nearest_to_them(images: Images) -> None:
    inverted = 255 - images.pixels[:5]
    errors = (inverted[:, None].float() - images.pixels[None].float()).square().mean((2, 3, 4)).sqrt()
    assert nearest_training_distance(images.pixels[:5], images.pixels) == pytest.approx(0, abs=1e-2)
    distance = nearest_training_distance(inverted, images.pixels)
    assert distance == pytest.approx(float(errors.amin(1).median()), rel=1e-4)


def test_a_feature_network_is_read_as_it_was_written(images: Images, tmp_path: Path) -> None:
    classifier = Classifier(images.classes, channels=3, seed=4).eval()
    matcher = Matcher(vocabulary(CAPTIONS), channels=3, seed=4).eval()
    for network in (classifier, matcher):
        write_feature_network(network, tmp_path)
        again = read_feature_network(tmp_path)
        assert type(again) is type(network)
        assert torch.equal(features_of(again, images.pixels), features_of(network, images.pixels))


def test_retrieval_counts_the_captions_that_fit_better_than_the_right_one() -> None:
    class Counting(Matcher):
        """Of four captions, the third fits no picture best."""

        def forward(self, images: Tensor, captions: Tensor) -> Tensor:
            right = captions @ self.bags(CAPTIONS).T
            return right.T * torch.tensor([1.0, 1.0, -1.0, 1.0])[:, None]

    names, styles = zip(*(caption.removesuffix(" style").split(", ") for caption in CAPTIONS), strict=True)
    pictures = Captioned(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), names, styles, ("",) * 4)
    metrics = retrieval(Counting(vocabulary(CAPTIONS), channels=3, seed=0), pictures.pixels, pictures)
    assert (metrics["count"], metrics["R@1"], metrics["R@5"]) == (4, 0.75, 1.0)
    assert metrics["style_accuracy"] == 0.75
