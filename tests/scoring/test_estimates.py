"""Estimates: what few samples say of many."""

import numpy as np
import pytest
import scipy.stats

from ldpruner.scoring.estimates import CURVES, Curve, comparable_scores, rank_stability, standard_error
from ldpruner.scoring.importance import METRICS, Metric, importance, moments

SAMPLES = 64
NORMAL = 1.96


def curves(count: int, spread: float, seed: int = 0) -> list[Curve]:
    """Modifications that move latents by a shift and by noise, sample by sample more or less."""
    generator = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        clean = generator.normal(size=(SAMPLES, 4, 8, 8))
        strength = generator.lognormal(generator.normal(), spread, size=(SAMPLES, 1, 1, 1))
        moved = clean + strength * generator.normal(size=(4, 8, 8)) + strength * generator.normal(size=clean.shape)
        parts = {
            end: (moments(clean[:end], clean[:end]), moments(moved[:end], clean[:end])) for end in (1, 2, 4, 8, 64)
        }
        scores = {metric: {end: importance(*part, metric) for end, part in parts.items()} for metric in CURVES}
        result.append(Curve(parts[64][1].squared_errors, scores))
    return result


@pytest.mark.parametrize("metric", METRICS)
def test_the_score_of_all_samples_is_the_metric_itself(metric: Metric) -> None:
    known = curves(5, 0.5)
    scores = comparable_scores(known, [SAMPLES] * 5, SAMPLES, metric)
    np.testing.assert_array_equal(scores, [curve.score(metric) for curve in known])


@pytest.mark.parametrize("metric", METRICS)
def test_scores_of_few_samples_compare_with_those_of_many(metric: Metric) -> None:
    known = curves(60, 0.3)
    scores = comparable_scores(known, [1, SAMPLES, SAMPLES] * 20, SAMPLES, metric)
    ratios = np.log(scores / np.array([curve.score(metric) for curve in known]))
    assert abs(np.median(ratios[::3])) < 0.3
    assert not ratios[1::3].any()


def test_a_score_hangs_less_on_the_farthest_sample_than_the_mean() -> None:
    known = curves(100, 1.2)
    truth = np.array([curve.score("mse") for curve in known])
    plain = np.array([curve.score("mse", 4) for curve in known])
    estimates = comparable_scores(known, [4] * len(known), SAMPLES, "mse")
    assert np.log(estimates / truth).std() < np.log(plain / truth).std()


def test_distances_of_zero_and_infinity_differ() -> None:
    zero, infinite = Curve(np.zeros(2), {}), Curve(np.array([1.0, np.nan]), {})
    assert comparable_scores([zero, infinite], [2, 2], 4, "mse").tolist() == [0.0, np.inf]
    assert infinite.score("mse", 1) == 1.0


@pytest.mark.parametrize("spread", [0.2, 0.4, 0.5])
@pytest.mark.parametrize("samples", [1, 4, 8])
def test_most_intervals_hold_the_score_of_all_samples(spread: float, samples: int) -> None:
    known = curves(60, spread, seed=samples)
    counts = [samples] * 30 + [SAMPLES] * 30
    scores = comparable_scores(known, counts, SAMPLES, "mean_std")[:30]
    truth = [curve.score("mean_std") for curve in known[:30]]
    held = np.abs(np.log(scores / truth)) <= NORMAL * standard_error(samples, "mean_std")
    assert held.mean() > 0.85


def test_a_standard_error_halves_with_four_times_the_samples_and_is_that_of_a_cost() -> None:
    assert standard_error(4, "mean_std") == pytest.approx(standard_error(1, "mean_std") / 2)
    assert standard_error(1, "mse") == pytest.approx(2 * standard_error(1, "mean_std"))


def test_rank_stability_is_the_correlation_of_two_noisy_orders() -> None:
    generator = np.random.default_rng(1)
    scores, errors = generator.lognormal(0, 1, size=200), np.full(200, 0.5)
    pairs = [scores * np.exp(errors * generator.normal(size=200)) for _ in range(2)]
    assert rank_stability(scores.tolist(), errors.tolist()) == pytest.approx(
        scipy.stats.spearmanr(*pairs).statistic, abs=0.05
    )
    assert rank_stability(scores.tolist(), [0.0] * 200) == 1
    assert rank_stability([1.0], [0.1]) is None
