"""Each metric agrees with its definition, another library or a closed form; intervals cover what other seeds give."""

import sys
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import scipy.stats
import torch
from numpy.typing import NDArray
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from ldpruner.errors import EvaluationError
from ldpruner.evaluation import metrics
from ldpruner.evaluation.metrics import (
    Pixels,
    Statistic,
    between,
    cmmd,
    cosine_distance,
    frechet_distance,
    gaussian,
    inception_score,
    inside_manifold,
    kernel_distance,
    mean,
    precision,
    psnr,
    recall,
    shift_of_latents,
    ssim,
)

Floats = NDArray[np.float64]
Copied = Callable[[NDArray[np.int64]], float]  # of the samples of these indices


def normal(seed: int, samples: int = 40, features: int = 5, scale: float = 1.0, shift: float = 0.0) -> Floats:
    return np.random.default_rng(seed).normal(shift, scale, (samples, features))


def pictures(seed: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (3, 2, 16, 20, 3), dtype=np.uint8)


def channels_first(frames: Pixels) -> torch.Tensor:
    return torch.from_numpy(frames.astype(np.float64)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("features", [1, 5, 60])
def test_the_frechet_distance_agrees_with_torchmetrics(features: int) -> None:
    first, second = normal(0, 70, features), normal(1, 90, features, scale=1.5, shift=0.5)
    arguments = []
    for tensor in map(torch.from_numpy, (first, second)):
        arguments += [tensor.mean(0), torch.cov(tensor.T, correction=0).reshape(features, features)]
    assert frechet_distance(first, second).value == pytest.approx(float(_compute_fid(*arguments)), rel=1e-6)


def test_the_frechet_distance_of_gaussians_is_known_in_closed_form() -> None:
    """Of features whitened to be exactly Gaussian in their moments, with covariances that commute."""
    whitened = normal(0, 50, 4)
    whitened -= whitened.mean(0)
    whitened = whitened @ scipy.linalg.inv(scipy.linalg.sqrtm(whitened.T @ whitened / 50))
    scales, shift = np.array([1.0, 2.0, 0.5, 3.0]), np.array([0.1, 0.0, -2.0, 1.0])
    expected = (shift**2).sum() + ((scales - 1) ** 2).sum()
    assert frechet_distance(whitened * scales + shift, whitened).value == pytest.approx(expected)


def test_the_frechet_distance_of_fewer_samples_than_features_is_exact_and_silent() -> None:
    features = normal(0, 4, 60)
    assert frechet_distance(features, features).value == pytest.approx(0, abs=1e-12)
    shifted = frechet_distance(features + 2, features[[0, 1, 2, 3, 0, 1, 2, 3]]).value
    assert shifted == pytest.approx(4 * 60)


def test_the_kernel_distance_agrees_with_torchmetrics() -> None:
    first, second = normal(0), normal(1, shift=0.3)
    expected = float(poly_mmd(torch.from_numpy(first), torch.from_numpy(second)))
    assert kernel_distance(first, second).value == pytest.approx(expected)


def test_the_kernel_distance_is_its_definition_where_there_are_more_of_one_than_of_the_other() -> None:
    first, second = normal(0, 6), normal(1, 9, shift=0.3)

    def kernel(x: Floats, y: Floats) -> float:
        return float((x @ y / 5 + 1) ** 3)

    def among(features: Floats) -> float:
        count = len(features)
        return float(np.mean([kernel(features[i], features[j]) for i in range(count) for j in range(count) if i != j]))

    across = float(np.mean([kernel(x, y) for x in first for y in second]))
    assert kernel_distance(first, second).value == pytest.approx(among(first) + among(second) - 2 * across)


def test_the_distance_of_clip_features_is_its_definition_without_the_pairs_of_a_sample_with_itself() -> None:
    """The code of the paper (google-research/cmmd) has them: it averages over all pairs."""
    first, second = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (normal(0, 6), normal(1, 9)))

    def kernel(x: Floats, y: Floats) -> float:
        return float(np.exp(-((x - y) ** 2).sum() / (2 * 10**2)))

    def among(rows: Floats, *, distinct: bool) -> float:
        count = len(rows)
        pairs = [(i, j) for i in range(count) for j in range(count) if i != j or not distinct]
        return float(np.mean([kernel(rows[i], rows[j]) for i, j in pairs]))

    across = 2 * float(np.mean([kernel(x, y) for x in first for y in second]))
    unbiased, biased = (
        1000 * (among(first, distinct=distinct) + among(second, distinct=distinct) - across)
        for distinct in (True, False)
    )
    assert cmmd(first, second).value == pytest.approx(unbiased)
    own = 1000 * ((1 - among(first, distinct=True)) / 6 + (1 - among(second, distinct=True)) / 9)
    assert biased == pytest.approx(unbiased + own)


def test_the_cosine_distance_agrees_with_scipy() -> None:
    first, second = normal(0), normal(1)
    expected = [scipy.spatial.distance.cosine(*pair) for pair in zip(first, second, strict=True)]
    np.testing.assert_allclose(cosine_distance(first, second), expected)
    assert cosine_distance(first, first).max() == pytest.approx(0)


def test_the_manifold_is_that_of_the_paper_however_many_rows_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    features, others = normal(0, 20, 3), normal(1, 25, 3, scale=0.7)

    def is_inside(sample: Floats) -> float:
        for other in others:
            distances = sorted(float(np.linalg.norm(other - third)) for third in others)
            if float(np.linalg.norm(sample - other)) <= distances[3]:  # the first is its own
                return 1.0
        return 0.0

    inside = inside_manifold(features, others)
    np.testing.assert_array_equal(inside, [is_inside(sample) for sample in features])
    assert 0 < inside.mean() < 1
    monkeypatch.setattr(metrics, "MAX_ROWS", 7)
    np.testing.assert_array_equal(inside_manifold(features, others), inside)


def test_precision_and_recall_tell_too_little_variety_from_too_much() -> None:
    real, narrow, wide = normal(0, 200, 3), normal(1, 200, 3, scale=0.2), normal(2, 200, 3, scale=4.0)
    assert precision(narrow, real).value > 0.95 > 0.3 > recall(narrow, real).value
    assert precision(wide, real).value < 0.3 < 0.95 < recall(wide, real).value


def test_the_inception_score_is_the_mean_relative_entropy_of_scipy() -> None:
    classes = torch.from_numpy(normal(0, 30, 7, scale=2.0)).softmax(1).numpy()
    divergences = scipy.stats.entropy(classes, classes.mean(0)[None], axis=1)
    assert inception_score(classes).value == pytest.approx(np.exp(divergences.mean()))


def test_the_inception_score_is_between_one_and_the_number_of_classes() -> None:
    assert inception_score(np.eye(7)).value == pytest.approx(7)
    assert inception_score(np.full((5, 7), 1 / 7)).value == pytest.approx(1)


def test_the_signal_to_noise_ratio_agrees_with_torchmetrics() -> None:
    one, other = pictures(0), pictures(1)
    expected = [
        float(peak_signal_noise_ratio(channels_first(a), channels_first(b), data_range=255.0))
        for a, b in zip(one, other, strict=True)
    ]
    assert psnr(one, other) == pytest.approx(expected)


def test_pictures_that_are_the_same_differ_by_no_more_than_rounding() -> None:
    one = pictures(0)
    assert psnr(one, one) == pytest.approx(58.92, abs=0.01)
    assert ssim(one, one) == pytest.approx(1)


def test_structural_similarity_is_of_a_sample_with_its_own_original() -> None:
    one, other = pictures(0), pictures(1)
    other[1] = one[1]
    found = ssim(one, other)
    batches = [channels_first(frames.reshape(-1, 16, 20, 3)) for frames in (one[:1], other[:1])]
    expected = structural_similarity_index_measure(batches[0], batches[1], data_range=255.0)
    assert isinstance(expected, torch.Tensor)
    assert found[0] == pytest.approx(float(expected))
    assert found[1] == pytest.approx(1)


def test_structural_similarity_without_torchmetrics_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(EvaluationError, match=r"pip install .ld-pruner\[evaluation\]"):
        ssim(pictures(0), pictures(1))


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = normal(0, 400, 1)[:, 0]
    low, high = mean(values).interval
    margin = 1.96 * values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - margin, abs=0.2 * margin)
    assert high == pytest.approx(values.mean() + margin, abs=0.2 * margin)


FIRST, SECOND = normal(0, 30), normal(1, 30)
CLASSES = torch.from_numpy(normal(3, 30, 5)).softmax(1).numpy()


def kernel() -> tuple[Statistic, Copied]:
    return kernel_distance(FIRST, SECOND), lambda chosen: pairs_of(FIRST[chosen], chosen)


def inception() -> tuple[Statistic, Copied]:
    return inception_score(CLASSES), lambda chosen: inception_score(CLASSES[chosen]).value


def latents() -> tuple[Statistic, Copied]:
    shaped = [array.reshape(30, 5, 1) for array in (FIRST, SECOND)]
    return shift_of_latents(*shaped), lambda chosen: score_of(*(array[chosen] for array in shaped))


def score_of(latents: Floats, originals: Floats) -> float:
    """LD-Pruner's score by its definition."""
    shifts = (latents.mean(0) - originals.mean(0), latents.std(0) - originals.std(0))
    return sum(float(np.linalg.norm(shift)) for shift in shifts)


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
def test_a_resample_by_counts_equals_one_by_copies_however_few_rows_are_held(
    make: Callable[[], tuple[Statistic, Copied]], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MAX_ROWS", size)
    monkeypatch.setattr(metrics, "MAX_ELEMENTS", min(size, 2))
    statistic, copied = make()
    resamples = np.random.default_rng(0).integers(30, size=(4, 30))
    counts = np.stack([np.bincount(indices, minlength=30) for indices in resamples]).astype(np.float64)
    expected = [copied(indices) for indices in resamples]
    np.testing.assert_allclose(statistic.of_counts(counts), expected, rtol=1e-9)


def test_counted_samples_have_the_gaussian_of_copied_samples() -> None:
    features, chosen = normal(0), np.random.default_rng(0).integers(40, size=40)
    counted = gaussian(features, np.bincount(chosen, minlength=40).astype(np.float64))
    assert between(counted, gaussian(features[chosen])) == pytest.approx(0, abs=1e-12)
    assert between(counted, gaussian(features)) == pytest.approx(frechet_distance(features[chosen], features).value)


def test_an_interval_is_the_same_each_time() -> None:
    first, second = normal(0), normal(1)
    assert frechet_distance(first, second).interval == frechet_distance(first, second).interval


@pytest.mark.parametrize("metric", [frechet_distance, kernel_distance, cmmd])
def test_nine_in_ten_intervals_or_more_cover_the_mean_over_seeds(
    metric: Callable[[Floats, Floats], Statistic],
) -> None:
    """At 95 %, of 60 intervals: fewer than 52 would be one case in a hundred."""
    real = normal(0, 50, 4)

    def statistic(seed: int) -> Statistic:
        return metric(normal(seed, 50, 4, scale=1.2, shift=0.3), real)

    average = float(np.mean([statistic(seed).value for seed in range(1, 200)]))
    statistics = [statistic(seed) for seed in range(1000, 1060)]
    assert sum(low <= average <= high for low, high in (one.interval for one in statistics)) >= 52
    assert all(one.interval[0] <= one.value <= one.interval[1] for one in statistics)
