"""Quality metrics: functions of sample features [samples, features] and of samples paired with the original's.

Most return a `Statistic`, which has a value and a 95 % interval. The interval resamples the samples with replacement
and leaves the reference as it is. A resample is a row of counts, so no sample is copied and many resamples are one
matrix.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray

from ldpruner.errors import EvaluationError
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.sampling import BATCH_SIZE, largest_batch, sample_latents
from ldpruner.scoring.importance import Floats

Pixels: TypeAlias = NDArray[np.uint8]
Interval: TypeAlias = tuple[float, float]

RESAMPLES = 200
CONFIDENCE = 0.95
CMMD_SIGMA = 10
CMMD_SCALE = 1000  # for readable numbers
NEIGHBOURS = 3  # of precision and recall, as in their paper
SSIM_WINDOW = 11  # pixels
ROUNDING_ERROR = 1 / 12  # mean squared error of rounding to bytes
MAX_ROWS = 1024  # of a matrix of all pairs of samples, in memory at once
MAX_ELEMENTS = 4096  # of latents, in memory at once


@dataclass(frozen=True)
class Statistic:
    """A number computed from samples.

    Attributes:
        samples: how many samples.
        of_counts: maps counts [resamples, samples], how often each sample is in a resample, to values [resamples].
        lower_bound: the least value that the statistic can have.
    """

    samples: int
    of_counts: Callable[[Floats], Floats]
    lower_bound: float = 0.0

    @functools.cached_property
    def value(self) -> float:
        """The statistic of the samples as they are."""
        return float(self.of_counts(np.ones((1, self.samples)))[0])

    @functools.cached_property
    def interval(self) -> Interval:
        """The 95 % interval by the bootstrap (Efron, 1979), corrected for its bias."""
        random = np.random.default_rng(0)
        resamples = (random.integers(self.samples, size=self.samples) for _ in range(RESAMPLES))
        counts = np.stack([np.bincount(indices, minlength=self.samples) for indices in resamples])
        values = self.of_counts(counts.astype(np.float64))
        # A resample has fewer distinct samples, so its distance is larger: for 40 samples of 64 features by a quarter.
        # Plain percentiles miss the measured distance and the basic interval mirrors them below it. Shifted
        # percentiles cover what other seeds measure.
        low, high = np.percentile(values - values.mean() + self.value, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
        return max(self.lower_bound, min(self.value, float(low))), max(self.value, float(high))


def mean(values: Floats) -> Statistic:
    """The mean over samples."""
    return Statistic(len(values), lambda counts: np.asarray(counts @ values / counts.sum(axis=1)), float(values.min()))


def frechet_distance(features: Floats, reference: Floats) -> Statistic:
    """Frechet distance of the Gaussians fitted to two sets of features. It falls as samples get more."""
    real = gaussian(reference)
    return Statistic(
        len(features), lambda counts: np.array([between(gaussian(features, row), real) for row in counts])
    )


def gaussian(features: Floats, counts: Floats | None = None) -> tuple[Floats, Floats]:
    """Fits a Gaussian to features [samples, features]; each sample counts once, or `counts` [samples] times.

    Returns:
        the mean [features], and a root F [rows, features] of the covariance F'F (divided by the number of samples); it
        has at most as many rows as there are features or samples.
    """
    counts = np.ones(len(features)) if counts is None else counts
    shares = counts / counts.sum()
    mean = shares @ features
    centred = (features - mean) * np.sqrt(shares)[:, None]
    is_tall = len(centred) > centred.shape[1]
    return mean, np.asarray(np.linalg.qr(centred, mode="r")) if is_tall else centred


def between(first: tuple[Floats, Floats], second: tuple[Floats, Floats]) -> float:
    """Frechet distance of two Gaussians (Dowson and Landau, 1982).

    With roots A and B, tr((A'A B'B)^1/2) is the sum of the singular values of AB'. This avoids the root of a
    covariance, which is singular where samples are few or repeated.
    """
    (mean, root), (other_mean, other_root) = first, second
    shared = np.linalg.svd(root @ other_root.T, compute_uv=False).sum()
    means = (mean - other_mean) @ (mean - other_mean)
    return max(0.0, float(means + (root**2).sum() + (other_root**2).sum() - 2 * shared))


def kernel_distance(features: Floats, reference: Floats) -> Statistic:
    """KID: the squared maximum mean discrepancy with kernel (x y / features + 1)^3.

    Source: Binkowski et al., arXiv 1801.01401, section 4.
    """

    def kernel(first: Floats, second: Floats) -> Floats:
        product = first @ second.T / features.shape[1] + 1
        return np.asarray(product * product * product)  # ten times as fast as a power

    def with_itself(samples: Floats) -> Floats:
        return np.asarray(((samples**2).mean(axis=1) + 1) ** 3)

    return _discrepancy(features, reference, kernel, with_itself)


def cmmd(features: Floats, reference: Floats) -> Statistic:
    """CMMD: 1000 times the squared maximum mean discrepancy of CLIP features, with a Gaussian kernel of sigma 10.

    It is unbiased, where the code of the paper is not: for few samples that one is far above 0 even of equal sets.

    Args:
        features, reference: [samples, features], of length 1.

    Source: Jayasumana et al., arXiv 2401.09603, section 4.
    """

    def kernel(first: Floats, second: Floats) -> Floats:
        squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1) - 2 * first @ second.T
        return np.asarray(CMMD_SCALE * np.exp(-squares / (2 * CMMD_SIGMA**2)))

    return _discrepancy(features, reference, kernel, lambda samples: np.full(len(samples), float(CMMD_SCALE)))


def _discrepancy(
    features: Floats,
    reference: Floats,
    kernel: Callable[[Floats, Floats], Floats],
    with_itself: Callable[[Floats], Floats],
) -> Statistic:
    """The unbiased squared maximum mean discrepancy of two sets of features. It may be below 0.

    A sample and its own copy in a resample are no pair.

    Args:
        kernel: of all pairs, [first samples, second samples].
        with_itself: the kernel of each sample with itself, [samples].
    """
    count, rows = len(reference), list(parts(len(features), MAX_ROWS))
    across = np.concatenate([kernel(features[part], reference).mean(axis=1) for part in rows])
    pairs = sum(float(kernel(reference[part], reference).sum()) for part in parts(count, MAX_ROWS))
    within_reference = (pairs - float(with_itself(reference).sum())) / (count * (count - 1))

    def distances(counts: Floats) -> Floats:
        within = -(counts**2) @ with_itself(features)
        for part in rows:
            within += ((counts @ kernel(features, features[part])) * counts[:, part]).sum(axis=1)
        total = counts.sum(axis=1)
        within /= total**2 - (counts**2).sum(axis=1)
        return np.asarray(within + within_reference - 2 * counts @ across / total)

    return Statistic(len(features), distances, lower_bound=-np.inf)


def precision(features: Floats, reference: Floats) -> Statistic:
    """The share of samples inside the manifold of the reference (Kynkaanniemi et al., arXiv 1904.06991)."""
    return mean(inside_manifold(features, reference))


def recall(features: Floats, reference: Floats) -> Statistic:
    """The share of the reference inside the manifold of the samples; here the reference is what is resampled."""
    return mean(inside_manifold(reference, features))


def inside_manifold(features: Floats, others: Floats) -> Floats:
    """Which samples lie inside the manifold of the others: [samples], 1 or 0.

    A sample is inside if it is nearer to one of the others than that one's third nearest neighbour among them. The
    others are never resampled, because copies would be each other's neighbours.
    Source: Kynkaanniemi et al., arXiv 1904.06991, equations 1 and 2.
    """
    samples, reference = torch.from_numpy(features), torch.from_numpy(others)
    nearest = NEIGHBOURS + 1  # the first is the sample itself
    radii = torch.cat([torch.cdist(part, reference).kthvalue(nearest).values for part in reference.split(MAX_ROWS)])
    is_near = torch.cat([(torch.cdist(part, reference) <= radii).any(dim=1) for part in samples.split(MAX_ROWS)])
    return np.asarray(is_near.double().numpy())


def inception_score(probabilities: Floats) -> Statistic:
    """How surely each sample is of one class, and how evenly samples cover all: 1 to the number of classes.

    Args:
        probabilities: [samples, classes], of all samples at once and not in ten parts.

    Source: Salimans et al., arXiv 1606.03498, section 4.
    """

    def negative_entropy(distributions: Floats) -> Floats:
        tiny = np.finfo(np.float64).tiny
        return np.asarray((distributions * np.log(np.maximum(distributions, tiny))).sum(axis=1))

    def scores(counts: Floats) -> Floats:
        shares = counts / counts.sum(axis=1, keepdims=True)
        own, of_mean = shares @ negative_entropy(probabilities), negative_entropy(shares @ probabilities)
        return np.asarray(np.exp(own - of_mean))

    return Statistic(len(probabilities), scores, lower_bound=1.0)


def shift_of_latents(latents: NDArray[np.floating], originals: NDArray[np.floating]) -> Statistic:
    """How far the latents of a pruned pipeline moved: LD-Pruner's score (arXiv 2404.11936) of the whole plan.

    || mean(Z) - mean(Z') ||_2 + || std(Z) - std(Z') ||_2, of latents and originals [samples, ...].
    """
    pair = [array.reshape(len(array), -1) for array in (latents, originals)]

    def shifts(counts: Floats) -> Floats:
        shares, squares = counts / counts.sum(axis=1, keepdims=True), np.zeros((2, len(counts)))
        for part in parts(pair[0].shape[1], MAX_ELEMENTS):
            ours, theirs = (_mean_and_std(shares, array[:, part].astype(np.float64)) for array in pair)
            squares += np.square(ours - theirs).sum(axis=2)
        return np.asarray(np.sqrt(squares).sum(axis=0))

    return Statistic(len(latents), shifts)


def _mean_and_std(shares: Floats, values: Floats) -> Floats:
    """Of each resample and element: [2, resamples, elements]."""
    mean = shares @ values
    return np.stack([mean, np.sqrt(np.maximum(shares @ np.square(values) - mean**2, 0))])


def latent_distance(latents: Floats, originals: Floats) -> Floats:
    """Root mean square difference of each sample's latents from the original's [samples], of arrays [samples, ...]."""
    squares = np.square(latents - originals).reshape(len(latents), -1)
    return np.asarray(np.sqrt(squares.mean(axis=1)))


def cosine_distance(features: Floats, originals: Floats) -> Floats:
    """1 - cosine of each sample's features with the original's [samples], 0 to 2, of arrays [samples, features]."""
    lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(originals, axis=1)
    return np.asarray(np.clip(1 - (features * originals).sum(axis=1) / np.maximum(lengths, 1e-12), 0, 2))


def psnr(pictures: Pixels, originals: Pixels) -> Floats:
    """Peak signal-to-noise ratio of each sample [samples], in dB; at most 58.9, that of rounding to bytes.

    Args:
        pictures, originals: [samples, frames, height, width, 3].
    """
    errors = ((pictures.astype(np.float64) - originals) ** 2).mean(axis=(1, 2, 3, 4))
    return np.asarray(10 * np.log10(255**2 / np.maximum(errors, ROUNDING_ERROR)))


def ssim(pictures: Pixels, originals: Pixels) -> Floats:
    """Structural similarity of each sample with its original [samples], the mean over frames; 1 where they are equal.

    Args:
        pictures, originals: [samples, frames, height, width, 3], of at least 11 pixels a side.

    Raises:
        EvaluationError: torchmetrics is missing.

    Source: Wang et al., IEEE Transactions on Image Processing 13 (2004), a Gaussian window of 11 pixels.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise EvaluationError(
            'ssim needs torchmetrics, which is not installed; pip install "ld-pruner[evaluation]"'
        ) from error

    def similarity(*frames: Pixels) -> float:
        # One frame at a time: torchmetrics needs thirty times the memory of its picture.
        preds, target = (torch.from_numpy(frame.astype(np.float64)).permute(2, 0, 1)[None] for frame in frames)
        return float(structural_similarity_index_measure(preds, target, data_range=255.0))  # type: ignore[arg-type]

    videos = zip(pictures, originals, strict=True)
    return np.array([np.mean([similarity(*pair) for pair in zip(*video, strict=True)]) for video in videos])


SET_METRICS: Mapping[str, Callable[[Floats, Floats], Statistic]] = {  # of the features of all samples
    "frechet_distance": frechet_distance,
    "kid": kernel_distance,
    "precision": precision,
    "recall": recall,
}
PICTURE_METRICS: Mapping[str, Callable[[Pixels, Pixels], Floats]] = {"psnr": psnr, "ssim": ssim}


def latent_shift(first: DiffusionPipeline, second: DiffusionPipeline, probes: tuple[Probe, Probe]) -> float:
    """Samples two pipelines, each with its own probe, and returns the latent shift between them.

    For an original and its pruned pipeline on the same probe this is the score of the whole plan; infinity if latents
    are not finite. The same pipeline on probes of different seeds gives the noise floor.
    """
    originals, latents = (_latents(*pair) for pair in zip((first, second), probes, strict=True))
    if not (np.isfinite(latents).all() and np.isfinite(originals).all()):
        return float("inf")
    return shift_of_latents(latents, originals).value


def _latents(pipeline: DiffusionPipeline, probe: Probe) -> Floats:
    indices, size = range(probe.samples), largest_batch(pipeline, probe, BATCH_SIZE)
    batches = [sample_latents(pipeline, probe, indices[part]) for part in parts(len(indices), size)]
    return np.asarray(torch.cat(batches).double().cpu().numpy())


def same_latents(first: DiffusionPipeline, second: DiffusionPipeline, probe: Probe) -> bool:
    """Whether two pipelines sample bit-identical latents, for the first two samples of a probe."""
    samples = range(min(2, probe.samples))
    return bool((sample_latents(first, probe, samples) == sample_latents(second, probe, samples)).all())


def parts(length: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover a sequence of this length."""
    return (slice(first, first + size) for first in range(0, length, size))
