"""Estimates: what few samples say of many."""

import numpy as np
import pytest

from ldpruner.scoring.estimates import (
    UNLIKE,
    Curve,
    estimated,
    interval,
    relative_error,
    shrunk_score,
    standard_error_of_score,
    to_many,
    usual_spread,
)
from ldpruner.scoring.importance import Metric, importance, merged, moments

SAMPLES = 64


def curves(count: int, spread: float, seed: int = 0) -> list[Curve]:
    """Modifications that move latents by a shift and by noise, sample by sample more or less."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        clean = draw.normal(size=(SAMPLES, 4, 8, 8))
        strength = draw.lognormal(draw.normal(), spread, size=(SAMPLES, 1, 1, 1))
        moved = clean + strength * draw.normal(size=(4, 8, 8)) + strength * draw.normal(size=clean.shape)
        parts = [(moments(clean[:end], clean[:end]), moments(moved[:end], clean[:end])) for end in (2, 4, 8, 16, 32)]
        whole = moments(clean, clean), moments(moved, clean)
        scores = {other.count: importance(one, other) for one, other in [*parts, whole]}
        found.append(Curve(scores, merged([whole[1]]).squared_errors))
    return found


def test_a_score_of_few_samples_is_brought_to_that_of_many() -> None:
    found = curves(40, 0.3)
    factors = to_many(found, SAMPLES, "mean_std")
    assert factors[SAMPLES] == (1, 0)
    assert factors[2].factor < factors[8].factor < 1  # of few samples, noise counts as distance
    ratios = [shrunk_score(one, 2, SAMPLES, "mean_std") * factors[2].factor / one.scores[SAMPLES] for one in found]
    assert np.median(ratios) == pytest.approx(1, abs=0.1)


def test_too_few_modifications_tell_nothing() -> None:
    assert set(to_many(curves(4, 0.3), SAMPLES, "mean_std").values()) == {(1, 0)}


@pytest.mark.parametrize("spread", [0.2, 0.4, 0.7])
@pytest.mark.parametrize("samples", [4, 16])
def test_most_intervals_hold_the_score_of_all_samples(spread: float, samples: int) -> None:
    found = curves(150, spread, seed=samples)
    first = [one.first(samples) for one in found]
    factors, usual = to_many(found, SAMPLES, "mean_std"), usual_spread(found)
    held = 0
    for few, many in zip(first, found, strict=True):
        score = shrunk_score(few, samples, SAMPLES, "mean_std") * factors[samples].factor
        low, high = interval(score, relative_error(few, usual, "mean_std"))
        held += low <= many.score <= high
    assert held >= 0.87 * len(found)


def test_more_samples_make_a_score_surer() -> None:
    one = curves(1, 0.3)[0]
    errors = [relative_error(one.first(samples), 1.0, "mean_std") for samples in (2, 8, 32)]
    assert errors[0] > errors[1] > errors[2]
    assert relative_error(one, 1.0, "mse") == pytest.approx(2 * relative_error(one, 1.0, "mean_std"))


def test_what_is_drawn_whole_is_not_in_doubt() -> None:
    assert standard_error_of_score(0.4, 0.25) < 0.4
    assert standard_error_of_score(0.4, 1.0) == 0


@pytest.mark.parametrize("samples", [4, 8, 16])
def test_a_steadied_score_errs_less_where_few_samples_make_up_most_of_a_distance(samples: int) -> None:
    found = curves(100, 1.2)
    wholes = np.array([one.scores[SAMPLES] for one in found])
    plain = np.array([one.scores[samples] for one in found])
    steady = np.array([shrunk_score(one, samples, SAMPLES, "mean_std") for one in found])
    assert np.log(steady / wholes).std() < 0.95 * np.log(plain / wholes).std()


@pytest.mark.parametrize(("metric", "power"), [("mean_std", 0.5), ("mse", 1.0)])
def test_a_score_is_steadied_by_the_ratio_of_the_two_means_of_its_distances(metric: Metric, power: float) -> None:
    one = Curve({2: 3.0, 4: 2.0}, np.array([1.0, 4.0, 1.0, 4.0]))
    assert shrunk_score(one, 2, 8, metric) == pytest.approx(3 * (2 / 2.5) ** (1.2 * power * 0.75**2))
    assert shrunk_score(one, 4, 8, metric) == pytest.approx(2 * (2 / 2.5) ** (1.2 * power * 0.5**2))
    assert shrunk_score(one, 4, 4, metric) == 2
    assert shrunk_score(Curve({2: 3.0}, np.array([0.0, 4.0])), 2, 8, metric) == 3


def test_looks_tell_what_was_not_drawn_in_the_size_of_what_was() -> None:
    drawn = {place: one.first(8) for place, one in enumerate(curves(20, 0.3))}
    effects = {place: 1e-6 * one.score**2 for place, one in drawn.items()}
    found = estimated(dict(list(drawn.items())[:10]), effects, SAMPLES, "mean_std")
    for place, one in found.items():
        assert one.samples == (8 if place < 10 else 0)
        assert one.score == pytest.approx(drawn[place].score * found[0].score / drawn[0].score, rel=0.3)
    assert found[0].standard_error_of_score < UNLIKE / 2 == found[19].standard_error_of_score
    assert estimated({}, effects, SAMPLES, "mean_std")[0].error is not None


def test_what_looks_say_counts_for_less_the_more_was_drawn() -> None:
    many = curves(20, 0.3)
    odd = {place: 1.0 if place else 100.0 for place in range(20)}
    moved = []
    for samples in (2, 8, 32, 64):
        drawn = {place: one.first(samples) for place, one in enumerate(many)}
        alone, beside = (estimated(drawn, effects, SAMPLES, "mean_std")[0] for effects in ({}, odd))
        assert beside.standard_error_of_score <= alone.standard_error_of_score
        moved.append(beside.score / alone.score)
    assert moved[0] > moved[1] > moved[2] > moved[3] == 1


def test_what_was_stopped_is_not_made_less_by_looks() -> None:
    one = curves(1, 0.3)[0].first(2)
    stopped = Curve(one.scores, one.distances, stopped=True)
    found = estimated({"far": stopped}, {"far": 1e-9}, SAMPLES, "mean_std")["far"]
    assert (found.score, found.error, found.stopped) == (one.score, None, True)
