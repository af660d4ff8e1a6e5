"""Rows of an evaluation: verdicts, differences of pairs, categories."""

from typing import Any

import numpy as np
import pytest
import scipy.stats

from ldpruner.evaluation.features import LatentFeatures
from ldpruner.evaluation.measures import METRICS, Measure, Runs, category_measures, sample_measures, set_measures
from ldpruner.evaluation.metrics import cmmd
from ldpruner.evaluation.scorers import Scorer


def never(samples: Any, prompts: Any) -> Any:
    raise AssertionError("its scores are observed before")


class Lower:
    lower_is_better = True
    __call__ = staticmethod(never)


RANDOM = np.random.default_rng(0)
TALENT = RANDOM.normal(0, 10, 40)  # what both samples of a seed have in common
SCORERS = (Scorer("m:high", never), Scorer("m:low", Lower()))


def runs(shift: float) -> Runs:
    """Scores that differ by far less within a seed than between seeds."""
    ours, other = TALENT + shift + RANDOM.normal(0, 0.1, 40), RANDOM.normal(0, 10, 40)
    scores = ((TALENT, np.zeros(40)), (other, np.ones(40)), (ours, np.full(40, 0.2)))
    return [
        {"m:high": score, "m:low": score, "clip_score": score + 40, "psnr": distance, "features": score[:, None]}
        for score, distance in scores
    ]


@pytest.mark.parametrize(
    ("metric", "original", "interval", "floor", "verdict"),
    [
        ("frechet_distance", 3.0, (2.5, 4.0), 3.0, True),
        ("frechet_distance", 3.0, (3.1, 4.0), 3.0, False),
        ("recall", 0.8, (0.7, 0.9), 0.8, True),
        ("recall", 0.8, (0.6, 0.7), 0.8, False),
        ("latent_shift", None, (0.5, 1.0), 2.0, True),
        ("psnr", None, (20.0, 25.0), 12.0, True),
        ("psnr", None, (9.0, 10.0), 12.0, False),
        ("latency_ratio", 1.0, (0.4, 0.6), None, None),
        ("parameters", 100, None, None, None),
    ],
)
def test_a_measure_is_within_the_noise_floor_if_its_better_end_is_no_worse(
    metric: str,
    original: float | None,
    interval: tuple[float, float] | None,
    floor: float | None,
    verdict: bool | None,
) -> None:
    pruned = sum(interval) / 2 if interval else 50
    measure = Measure(metric=metric, original=original, pruned=pruned, interval=interval, noise_floor=floor)
    assert measure.within_noise_floor is verdict


@pytest.mark.parametrize(("shift", "is_high_good", "is_low_good"), [(0.5, True, False), (-0.5, False, True)])
def test_a_score_is_compared_by_pairs_and_in_its_direction(
    shift: float, is_high_good: bool, is_low_good: bool
) -> None:
    observed = runs(shift)
    rows = {row.metric: row for row in sample_measures(observed, METRICS, SCORERS)}
    high, low = rows["m:high"], rows["m:low"]
    assert high.pruned == pytest.approx(observed[2]["m:high"].mean())
    assert high.original == pytest.approx(TALENT.mean())
    assert high.interval is not None
    assert high.difference == pytest.approx((observed[2]["m:high"] - TALENT).mean())
    expected = scipy.stats.t.interval(0.95, 39, high.difference, 0.1 / np.sqrt(40))
    assert high.difference_interval == pytest.approx(expected, abs=0.03)
    assert high.interval[0] < TALENT.mean() < high.interval[1]  # without the pairs nothing would be seen
    assert (high.within_noise_floor, low.within_noise_floor) == (is_high_good, is_low_good)
    assert (rows["clip_score"].within_noise_floor, rows["clip_score"].higher_is_better) == (is_high_good, True)
    assert (rows["psnr"].original, rows["psnr"].difference) == (None, None)


def test_a_scorer_is_measured_whatever_metrics_are_chosen() -> None:
    assert [row.metric for row in sample_measures(runs(0), ("kid",), SCORERS)] == ["m:high", "m:low"]
    rows = set_measures(runs(0), runs(0)[1], ("frechet_distance",), LatentFeatures())
    assert [row.metric for row in rows] == ["frechet_distance"]


def test_the_distance_of_clip_features_is_taken_in_those() -> None:
    features = RANDOM.normal(size=(3, 20, 4))
    observed = [{"features": RANDOM.normal(size=(20, 2)), "clip": rows} for rows in features]
    (row,) = set_measures(observed, observed[1], ("cmmd",), LatentFeatures())
    assert row.pruned == cmmd(features[2], features[1]).value
    assert row.noise_floor == cmmd(features[0], features[1]).value


def test_categories_have_the_measures_of_their_samples_and_small_ones_no_interval() -> None:
    observed = runs(0.5)
    names = ["a"] * 30 + ["b"] * 4 + ["a"] * 6
    by_category = category_measures(observed, names, METRICS, SCORERS)
    assert list(by_category) == ["a", "b"]
    where = np.array(names) == "b"
    of_b = {row.metric: row for row in by_category["b"]}
    assert of_b["m:high"].pruned == pytest.approx(observed[2]["m:high"][where].mean())
    assert of_b["m:high"].difference == pytest.approx((observed[2]["m:high"] - TALENT)[where].mean())
    assert (of_b["m:high"].interval, of_b["m:high"].difference_interval) == (None, None)
    assert of_b["m:high"].within_noise_floor is None
    assert of_b["psnr"].pruned == pytest.approx(0.2)
    assert all(row.interval is not None for row in by_category["a"])
    assert category_measures(observed, [], METRICS, SCORERS) == {}
