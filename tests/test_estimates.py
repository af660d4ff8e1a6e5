"""Estimates: what few samples say of many."""

import numpy as np
import pytest

from ldpruner.estimates import Change, Curve, doubt, factor, interval, relative_error, to_many, usual_spread
from ldpruner.importance import importance, merged, moments

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
    factors = to_many(found, SAMPLES)
    assert factors[SAMPLES] == (1, 0)
    assert factors[2].factor < factors[8].factor < 1  # of few samples, noise counts as distance
    ratios = [one.scores[2] * factors[2].factor / one.scores[SAMPLES] for one in found]
    assert np.median(ratios) == pytest.approx(1, abs=0.1)


def test_too_few_modifications_tell_nothing() -> None:
    assert set(to_many(curves(4, 0.3), SAMPLES).values()) == {(1, 0)}


@pytest.mark.parametrize("spread", [0.2, 0.4, 0.7])
@pytest.mark.parametrize("samples", [4, 16])
def test_most_intervals_hold_the_score_of_all_samples(spread: float, samples: int) -> None:
    found = curves(150, spread, seed=samples)
    first = [one.first(samples) for one in found]
    factors, usual = to_many(found, SAMPLES), usual_spread(found)
    held = 0
    for few, many in zip(first, found, strict=True):
        low, high = interval(few.score * factors[samples].factor, relative_error(few, usual, "mean_std"))
        held += low <= many.score <= high
    assert held >= 0.87 * len(found)


def test_more_samples_make_a_score_surer() -> None:
    one = curves(1, 0.3)[0]
    errors = [relative_error(one.first(samples), 1.0, "mean_std") for samples in (2, 8, 32)]
    assert errors[0] > errors[1] > errors[2]
    assert relative_error(one, 1.0, "mse") == pytest.approx(2 * relative_error(one, 1.0, "mean_std"))


def test_what_is_drawn_whole_is_not_in_doubt_beside_others() -> None:
    assert doubt(0.4, 0.25) < 0.4
    assert doubt(0.4, 1.0) == 0


def test_from_eight_samples_on_a_modification_speaks_for_itself() -> None:
    usual = Change(0.8, 0.1)
    few, many = (Curve({count: 2.0}, np.ones(count), chances={count: 1.0}) for count in (4, 16))
    assert factor(few, usual, 64, "mean_std") == 0.8
    assert factor(many, usual, 64, "mean_std") == pytest.approx(np.sqrt(0.8 * 0.5))
    assert factor(many, usual, 64, "mse") == 0.8
    whole = Curve({64: 2.0}, np.ones(64), chances={64: 1.0})
    assert factor(whole, Change(1.0, 0.0), 64, "mean_std") == 1
