"""The score and its alternatives, each against its formula written out in NumPy."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchmetrics.image.fid import _compute_fid

from ldpruner.scoring.importance import METRICS, Metric, frechet_distance, importance, merged, moments

SHAPE = (12, 4, 3, 3)  # more samples than channels: the covariance of the pooled latents has full rank


def latents(seed: int, scale: float = 1.0, shift: float = 0.0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(shift, scale, SHAPE)


def norm(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.sum(values**2)))


def reference(metric: Metric, z: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Each metric as its definition reads."""
    mean = norm(z.mean(0) - other.mean(0))
    std = norm(z.std(0, ddof=0) - other.std(0, ddof=0))
    variance = norm(z.var(0, ddof=0) - other.var(0, ddof=0))
    cosines = [float(np.vdot(a, b)) / (norm(a) * norm(b)) for a, b in zip(z, other, strict=True)]
    return {
        "mean_std": mean + std,
        "mean_variance": mean + variance,
        "mean": mean,
        "std": std,
        "mse": float(np.mean((z - other) ** 2)),
        "cosine": float(np.mean([1 - cosine for cosine in cosines])),
        "frechet": frechet(z.mean((2, 3)), other.mean((2, 3))),
    }[metric]


def frechet(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2), the symmetric form, by eigenvalues."""
    deviations = [features - features.mean(0) for features in (first, second)]
    one, two = (deviation.T @ deviation / len(deviation) for deviation in deviations)
    values, vectors = np.linalg.eigh(one)
    root = vectors @ np.diag(np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ two @ root), 0)).sum()
    return float(np.sum((first.mean(0) - second.mean(0)) ** 2) + np.trace(one + two) - 2 * product)


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_its_formula(metric: Metric) -> None:
    z, other = latents(0), latents(1, scale=1.3, shift=0.2)
    score = importance(moments(z, z), moments(other, z), metric)
    assert score == pytest.approx(reference(metric, z, other), rel=1e-5)
    assert score > 1e-3


@pytest.mark.parametrize("metric", METRICS)
def test_latents_that_did_not_move_score_zero(metric: Metric) -> None:
    z = latents(0)
    assert importance(moments(z, z), moments(z, z), metric) == pytest.approx(0, abs=1e-6)


def test_the_paper_score_of_a_shift_and_a_stretch_is_known_in_closed_form() -> None:
    z = latents(0)
    elements = z[0].size
    assert importance(moments(z, z), moments(z + 3.0, z)) == pytest.approx(3.0 * np.sqrt(elements))
    centred = z - z.mean(0)
    stretched = importance(moments(centred, centred), moments(2 * centred, centred))
    assert stretched == pytest.approx(norm(centred.std(0, ddof=0)))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bounds", [(1,), (5, 9), (3, 4, 11)])
def test_moments_of_blocks_merge_into_those_of_all_samples(metric: Metric, bounds: tuple[int, ...]) -> None:
    z, other = latents(0), latents(1, scale=0.7)
    parts = list(zip(np.split(other, bounds), np.split(z, bounds), strict=True))
    of_blocks = merged([moments(*part) for part in parts])
    at_once = moments(other, z)
    assert of_blocks.count == len(z)
    np.testing.assert_allclose(of_blocks.mean, other.reshape(len(z), -1).mean(0), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(of_blocks.variance, other.reshape(len(z), -1).var(0, ddof=0), rtol=1e-12)
    np.testing.assert_array_equal(of_blocks.pooled, at_once.pooled)
    base = moments(z, z)
    assert importance(base, of_blocks, metric) == pytest.approx(importance(base, at_once, metric), rel=1e-9)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_latents_that_are_not_finite_score_infinity(metric: Metric, value: float) -> None:
    z, other = latents(0), latents(1)
    other[3, 1, 2, 0] = value
    assert importance(moments(z, z), moments(other, z), metric) == np.inf


@pytest.mark.parametrize("metric", METRICS)
def test_one_bad_block_spoils_the_whole(metric: Metric) -> None:
    z = latents(0)
    bad = z.copy()
    bad[:] = np.nan
    assert importance(moments(z, z), merged([moments(z, z), moments(bad, z)]), metric) == np.inf


def test_the_frechet_distance_agrees_with_torchmetrics() -> None:
    first, second = latents(0).mean((2, 3)), latents(1, scale=1.5, shift=0.5).mean((2, 3))
    arguments = []
    for features in (first, second):
        values = torch.from_numpy(features)
        arguments += [values.mean(0), torch.cov(values.T, correction=0)]
    assert frechet_distance(first, second) == pytest.approx(float(_compute_fid(*arguments)), rel=1e-6)


def test_the_frechet_distance_of_one_feature_is_that_of_two_normal_distributions() -> None:
    first, second = latents(0)[:, :1].mean((2, 3)), latents(1, scale=2.0, shift=1.0)[:, :1].mean((2, 3))
    expected = (first.mean() - second.mean()) ** 2 + (first.std() - second.std()) ** 2
    assert frechet_distance(first, second) == pytest.approx(float(expected))


def test_the_frechet_distance_of_fewer_samples_than_channels_is_finite_and_silent() -> None:
    first, second = latents(0)[:2].mean((2, 3)), latents(1)[:2].mean((2, 3))
    distance = frechet_distance(first, second)
    assert distance == pytest.approx(frechet(first, second), rel=1e-4, abs=1e-6)
