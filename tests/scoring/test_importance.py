"""The score and its alternatives, each against its formula written out in NumPy."""

import functools

import numpy as np
import pytest
from numpy.typing import NDArray

from ldpruner.scoring.importance import METRICS, Metric, cost, importance, merged, moments

SHAPE = (12, 4, 3, 3)


def latents(seed: int, scale: float = 1.0, shift: float = 0.0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(shift, scale, SHAPE)


def norm(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.sum(values**2)))


def reference(metric: Metric, z: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Each metric as its definition reads."""
    mean = norm(z.mean(0) - other.mean(0))
    std = norm(z.std(0, ddof=0) - other.std(0, ddof=0))
    variance = norm(z.var(0, ddof=0) - other.var(0, ddof=0))
    return {"mean_std": mean + std, "mean_variance": mean + variance, "mse": float(np.mean((z - other) ** 2))}[metric]


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_its_formula(metric: Metric) -> None:
    z, other = latents(0), latents(1, scale=1.3, shift=0.2)
    score = importance(moments(z, z), moments(other, z), metric)
    assert score == pytest.approx(reference(metric, z, other), rel=1e-5)
    assert score > 1e-3


@pytest.mark.parametrize("metric", METRICS)
def test_latents_that_did_not_move_score_zero(metric: Metric) -> None:
    z = latents(0)
    assert importance(moments(z, z), moments(z, z), metric) == 0


def test_the_paper_score_of_a_shift_and_a_stretch_is_known_in_closed_form() -> None:
    z = latents(0)
    elements = z[0].size
    assert importance(moments(z, z), moments(z + 3.0, z)) == pytest.approx(3.0 * np.sqrt(elements))
    centred = z - z.mean(0)
    stretched = importance(moments(centred, centred), moments(2 * centred, centred))
    assert stretched == pytest.approx(norm(centred.std(0, ddof=0)))


@pytest.mark.parametrize("metric", ["mean_std", "mse"])  # the variance itself is quadratic
def test_a_cost_is_quadratic_in_how_far_latents_move(metric: Metric) -> None:
    z = latents(0)
    single, double = (cost(importance(moments(z, z), moments(z + shift, z), metric), metric) for shift in (1.0, 2.0))
    assert double == pytest.approx(4 * single)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bounds", [(1,), (5, 9), (3, 4, 11)])
def test_moments_of_parts_merge_into_those_of_all_samples(metric: Metric, bounds: tuple[int, ...]) -> None:
    z, other = latents(0), latents(1, scale=0.7)
    parts = list(zip(np.split(other, bounds), np.split(z, bounds), strict=True))
    of_parts = functools.reduce(merged, [moments(*part) for part in parts])
    at_once = moments(other, z)
    assert of_parts.count == len(z)
    np.testing.assert_allclose(of_parts.mean, other.reshape(len(z), -1).mean(0), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(of_parts.variance, other.reshape(len(z), -1).var(0, ddof=0), rtol=1e-12)
    base = moments(z, z)
    assert importance(base, of_parts, metric) == pytest.approx(importance(base, at_once, metric), rel=1e-9)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_latents_that_are_not_finite_score_infinity(metric: Metric, value: float) -> None:
    z, other = latents(0), latents(1)
    other[3, 1, 2, 0] = value
    assert importance(moments(z, z), moments(other, z), metric) == np.inf


@pytest.mark.parametrize("metric", METRICS)
def test_one_bad_part_spoils_the_whole(metric: Metric) -> None:
    z = latents(0)
    bad = z.copy()
    bad[:] = np.nan
    assert importance(moments(z, z), merged(moments(z, z), moments(bad, z)), metric) == np.inf
