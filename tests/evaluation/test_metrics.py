"""Each number beside its definition, another library's or a closed form; intervals beside what other seeds give."""

import sys
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from numpy.typing import NDArray
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from ldpruner.errors import EvaluationError
from ldpruner.evaluation import metrics as quality
from ldpruner.scoring.importance import Gaussian, between, frechet_distance, importance, moments

Floats = NDArray[np.float64]
Copied = Callable[[NDArray[np.int64]], float]  # of the samples of these indices


def normal(seed: int, samples: int = 40, features: int = 5, scale: float = 1.0, shift: float = 0.0) -> Floats:
    return np.random.default_rng(seed).normal(shift, scale, (samples, features))


def pictures(seed: int) -> quality.Pixels:
    return np.random.default_rng(seed).integers(0, 256, (3, 2, 16, 20, 3), dtype=np.uint8)


def channels_first(frames: quality.Pixels) -> torch.Tensor:
    return torch.from_numpy(frames.astype(np.float64)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("features", [1, 5, 60])
def test_the_frechet_distance_agrees_with_torchmetrics(features: int) -> None:
    first, second = normal(0, 70, features), normal(1, 90, features, scale=1.5, shift=0.5)
    arguments = []
    for one in map(torch.from_numpy, (first, second)):
        arguments += [one.mean(0), torch.cov(one.T, correction=0).reshape(features, features)]
    assert frechet_distance(first, second) == pytest.approx(float(_compute_fid(*arguments)), rel=1e-6)


def test_the_frechet_distance_of_gaussians_is_known_in_closed_form() -> None:
    """Of features whitened to be exactly Gaussian in their moments, with covariances that commute."""
    whitened = normal(0, 50, 4)
    whitened -= whitened.mean(0)
    whitened = whitened @ scipy.linalg.inv(scipy.linalg.sqrtm(whitened.T @ whitened / 50))
    scales, shift = np.array([1.0, 2.0, 0.5, 3.0]), np.array([0.1, 0.0, -2.0, 1.0])
    expected = (shift**2).sum() + ((scales - 1) ** 2).sum()
    assert frechet_distance(whitened * scales + shift, whitened) == pytest.approx(expected)


def test_the_frechet_distance_of_fewer_samples_than_features_is_exact_and_silent() -> None:
    features = normal(0, 4, 60)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-12)
    shifted = frechet_distance(features + 2, features[[0, 1, 2, 3, 0, 1, 2, 3]])
    assert shifted == pytest.approx(4 * 60)


def test_the_kernel_distance_agrees_with_torchmetrics() -> None:
    first, second = normal(0), normal(1, shift=0.3)
    expected = float(poly_mmd(torch.from_numpy(first), torch.from_numpy(second)))
    assert quality.kernel_distance(first, second) == pytest.approx(expected)


def test_the_kernel_distance_is_its_definition_where_there_are_more_of_one_than_of_the_other() -> None:
    first, second = normal(0, 6), normal(1, 9, shift=0.3)

    def kernel(x: Floats, y: Floats) -> float:
        return float((x @ y / 5 + 1) ** 3)

    def among(features: Floats) -> float:
        count = len(features)
        return float(np.mean([kernel(features[i], features[j]) for i in range(count) for j in range(count) if i != j]))

    across = float(np.mean([kernel(x, y) for x in first for y in second]))
    assert quality.kernel_distance(first, second) == pytest.approx(among(first) + among(second) - 2 * across)


def test_inside_is_its_definition() -> None:
    features, others = normal(0, 20, 3), normal(1, 25, 3, scale=0.7)

    def near(one: Floats) -> float:
        for other in others:
            distances = sorted(float(np.linalg.norm(other - third)) for third in others)
            if float(np.linalg.norm(one - other)) <= distances[3]:  # the first is its own
                return 1.0
        return 0.0

    found = quality.inside(features, others)
    np.testing.assert_array_equal(found, [near(one) for one in features])
    assert 0 < found.mean() < 1


def test_precision_and_recall_tell_too_little_variety_from_too_much() -> None:
    real, narrow, wide = normal(0, 200, 3), normal(1, 200, 3, scale=0.2), normal(2, 200, 3, scale=4.0)
    assert quality.inside(narrow, real).mean() > 0.95 > 0.3 > quality.inside(real, narrow).mean()
    assert quality.inside(wide, real).mean() < 0.3 < 0.95 < quality.inside(real, wide).mean()


def test_the_inception_score_is_the_mean_relative_entropy_of_scipy() -> None:
    classes = torch.from_numpy(normal(0, 30, 7, scale=2.0)).softmax(1).numpy()
    divergences = scipy.stats.entropy(classes, classes.mean(0)[None], axis=1)
    assert quality.inception_score(classes) == pytest.approx(np.exp(divergences.mean()))


def test_the_inception_score_is_between_one_and_the_number_of_classes() -> None:
    assert quality.inception_score(np.eye(7)) == pytest.approx(7)
    assert quality.inception_score(np.full((5, 7), 1 / 7)) == pytest.approx(1)


def test_the_signal_to_noise_ratio_agrees_with_torchmetrics() -> None:
    one, other = pictures(0), pictures(1)
    expected = [
        float(peak_signal_noise_ratio(channels_first(a), channels_first(b), data_range=255.0))
        for a, b in zip(one, other, strict=True)
    ]
    assert quality.psnr(one, other) == pytest.approx(expected)


def test_pictures_that_are_the_same_differ_by_no_more_than_rounding() -> None:
    one = pictures(0)
    assert quality.psnr(one, one) == pytest.approx(58.92, abs=0.01)
    assert quality.ssim(one, one) == pytest.approx(1)


def test_structural_similarity_is_of_a_sample_with_its_own_original() -> None:
    one, other = pictures(0), pictures(1)
    other[1] = one[1]
    found = quality.ssim(one, other)
    batches = [channels_first(frames.reshape(-1, 16, 20, 3)) for frames in (one[:1], other[:1])]
    expected = structural_similarity_index_measure(batches[0], batches[1], data_range=255.0)
    assert isinstance(expected, torch.Tensor)
    assert found[0] == pytest.approx(float(expected))
    assert found[1] == pytest.approx(1)


def test_structural_similarity_without_torchmetrics_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(EvaluationError, match=r"pip install .ld-pruner\[evaluation\]"):
        quality.ssim(pictures(0), pictures(1))


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = normal(0, 400, 1)[:, 0]
    low, high = quality.mean_interval(values)
    margin = 1.96 * values.std() / np.sqrt(400)
    assert low == 0  # no lower, whatever is drawn
    assert high == pytest.approx(values.mean() + margin, abs=0.2 * margin)


FIRST, SECOND = normal(0, 30), normal(1, 30)
CLASSES = torch.from_numpy(normal(3, 30, 5)).softmax(1).numpy()


def kernel() -> tuple[quality.Statistic, Copied]:
    return quality.kernel_distances(FIRST, SECOND), lambda chosen: pairs_of(FIRST[chosen], chosen)


def inception() -> tuple[quality.Statistic, Copied]:
    return quality.inception_scores(CLASSES), lambda chosen: quality.inception_score(CLASSES[chosen])


def latents() -> tuple[quality.Statistic, Copied]:
    shaped = [one.reshape(30, 5, 1) for one in (FIRST, SECOND)]
    return quality.latent_scores(*shaped), lambda chosen: score_of(*(one[chosen] for one in shaped))


def score_of(latents: Floats, originals: Floats) -> float:
    return importance(moments(originals, originals), moments(latents, originals))


def pairs_of(features: Floats, chosen: NDArray[np.int64]) -> float:
    """KID by its definition, but that copies of one sample are no pair."""
    among, across, behind = (
        (first @ second.T / 5 + 1) ** 3
        for first, second in ((features, features), (features, SECOND), (SECOND, SECOND))
    )
    different, others = chosen[:, None] != chosen, ~np.eye(len(behind), dtype=bool)
    return float(among[different].mean() + behind[others].mean() - 2 * across.mean())


@pytest.mark.parametrize("make", [kernel, inception, latents])
@pytest.mark.parametrize("size", [7, 1000])
def test_a_draw_counted_is_that_draw_copied_however_few_rows_are_there_at_once(
    make: Callable[[], tuple[quality.Statistic, Copied]], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "ROWS", size)
    monkeypatch.setattr(quality, "ELEMENTS", min(size, 2))
    statistic, copied = make()
    draws = np.random.default_rng(0).integers(30, size=(4, 30))
    counts = np.stack([np.bincount(one, minlength=30) for one in draws]).astype(np.float64)
    np.testing.assert_allclose(statistic(counts), [copied(one) for one in draws], rtol=1e-9)


def test_samples_counted_have_the_gaussian_of_samples_copied() -> None:
    features, chosen = normal(0), np.random.default_rng(0).integers(40, size=40)
    counted = Gaussian.of(features, np.bincount(chosen, minlength=40).astype(np.float64))
    assert between(counted, Gaussian.of(features[chosen])) == pytest.approx(0, abs=1e-12)
    assert between(counted, Gaussian.of(features)) == pytest.approx(frechet_distance(features[chosen], features))


def test_which_samples_are_inside_hangs_not_on_how_many_are_looked_at_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    features, others = normal(0, 50, 3), normal(1, 60, 3, scale=0.7)
    found = quality.inside(features, others)
    monkeypatch.setattr(quality, "ROWS", 7)
    np.testing.assert_array_equal(quality.inside(features, others), found)


def test_an_interval_is_the_same_each_time() -> None:
    first, second = normal(0), normal(1)
    assert quality.frechet_interval(first, second) == quality.frechet_interval(first, second)


@pytest.mark.parametrize("metric", ["frechet", "kernel"])
def test_nine_in_ten_intervals_or_more_hold_what_samples_give_on_average(metric: str) -> None:
    """At 95 %, and of 60: fewer than 52 would be one in a hundred."""
    value, interval = {
        "frechet": (frechet_distance, quality.frechet_interval),
        "kernel": (quality.kernel_distance, quality.kernel_interval),
    }[metric]
    real = normal(0, 50, 4)

    def draw(seed: int) -> Floats:
        return normal(seed, 50, 4, scale=1.2, shift=0.3)

    mean = float(np.mean([value(draw(seed), real) for seed in range(1, 200)]))
    found = [interval(draw(seed), real) for seed in range(1000, 1060)]
    assert sum(low <= mean <= high for low, high in found) >= 52
    assert all(low <= value(draw(seed), real) <= high for seed, (low, high) in enumerate(found, 1000))
