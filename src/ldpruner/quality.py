"""How good samples are: pure functions of their features [samples, features], and of paired pictures.

Each has its interval, by drawing the samples again with replacement while what they are compared with stays.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import scipy.spatial
import torch
from numpy.typing import NDArray

from ldpruner.errors import EvaluationError
from ldpruner.importance import Floats, frechet_distance

Pixels: TypeAlias = NDArray[np.uint8]
Indices: TypeAlias = NDArray[np.int64]
Interval: TypeAlias = tuple[float, float]

RESAMPLES = 200
CONFIDENCE = 0.95
NEIGHBOURS = 3  # of precision and recall, as in their paper
WINDOW = 11  # pixels of the window of SSIM
ROUNDING = 1 / 12  # squared error of rounding to bytes: no smaller one can be seen


def interval(
    statistic: Callable[[Indices], float], count: int, *, resamples: int = RESAMPLES, seed: int = 0, lowest: float = 0
) -> Interval:
    """The 95 % interval of a statistic of samples, by the bootstrap (Efron, 1979), its bias taken off.

    Args:
        statistic: of the samples of these indices, some more than once.
        count: how many samples there are.
        resamples: how many times they are drawn again.
        seed: of that.
        lowest: what the statistic cannot be below.
    """
    random = np.random.default_rng(seed)
    drawn = np.array([statistic(random.integers(count, size=count)) for _ in range(resamples)])
    # Samples drawn again are fewer distinct ones and lie further off: of 40 with 64 features by a quarter. Percentiles
    # miss the measured distance, the basic interval mirrors them below it; moved ones hold what other seeds measure.
    value = statistic(np.arange(count))
    centred = drawn - drawn.mean() + value
    low, high = np.percentile(centred, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return max(lowest, min(value, float(low))), max(value, float(high))


def mean_interval(values: Floats) -> Interval:
    """The interval of a mean over samples."""
    return interval(lambda chosen: float(values[chosen].mean()), len(values))


def frechet_interval(features: Floats, reference: Floats) -> Interval:
    """The interval of a Frechet distance between as many samples; more samples are nearer to each other."""
    return interval(lambda chosen: frechet_distance(features[chosen], reference), len(features))


def kernel_distance(features: Floats, reference: Floats) -> float:
    """KID: the unbiased squared maximum mean discrepancy, of kernel (x y / features + 1)^3.

    Unbiased means that it may be below 0. Source: Binkowski et al., arXiv 1801.01401, section 4.
    """
    return _discrepancy(*_kernels(features, reference), np.ones(len(features)))


def kernel_interval(features: Floats, reference: Floats) -> Interval:
    """The interval of a KID."""
    kernels = _kernels(features, reference)

    def resampled(chosen: Indices) -> float:
        return _discrepancy(*kernels, np.bincount(chosen, minlength=len(features)).astype(np.float64))

    return interval(resampled, len(features), lowest=-np.inf)


def _kernels(features: Floats, reference: Floats) -> tuple[Floats, Floats, float]:
    """The kernel among the features, each one's mean over the reference, and its mean among the reference."""
    among, across, behind = (
        (first @ second.T / features.shape[1] + 1) ** 3
        for first, second in ((features, features), (features, reference), (reference, reference))
    )
    count = len(reference)
    return among, across.mean(axis=1), float((behind.sum() - np.trace(behind)) / (count * (count - 1)))


def _discrepancy(among: Floats, across: Floats, behind: float, counts: Floats) -> float:
    """The discrepancy where each sample counts as often as told; a sample and its own copy are no pair."""
    pairs = counts.sum() ** 2 - (counts**2).sum()
    within = (counts @ among @ counts - counts**2 @ np.diag(among)) / pairs
    return float(within + behind - 2 * counts @ across / counts.sum())


def inside(features: Floats, others: Floats, neighbours: int = NEIGHBOURS) -> Floats:
    """Which samples lie where the others do: [samples], 1 or 0.

    That is, nearer to one of the others than this one's third nearest neighbour among them. The mean is the precision
    of samples among real ones, and the recall of real ones among samples. The others are not resampled, as copies
    would be each other's neighbours: the interval of both is that of the mean.

    Source: Kynkaanniemi et al., arXiv 1904.06991, equations 1 and 2.
    """
    among = scipy.spatial.distance.cdist(others, others)
    radii = np.partition(among, neighbours, axis=1)[:, neighbours]  # the nearest of all is itself
    near = scipy.spatial.distance.cdist(features, others) <= radii
    return np.asarray(near.any(axis=1), dtype=np.float64)


def inception_score(probabilities: Floats) -> float:
    """How surely samples are of one class each, and how evenly of all: 1 to the number of classes.

    Args:
        probabilities: [samples, classes], of all samples at once rather than in ten parts.

    Source: Salimans et al., arXiv 1606.03498, section 4.
    """
    tiny = np.finfo(np.float64).tiny
    logs = np.log(np.maximum(probabilities, tiny)) - np.log(np.maximum(probabilities.mean(axis=0), tiny))
    return float(np.exp((probabilities * logs).sum(axis=1).mean()))


def inception_interval(probabilities: Floats) -> Interval:
    """The interval of an inception score."""
    return interval(lambda chosen: inception_score(probabilities[chosen]), len(probabilities), lowest=1)


def psnr(pictures: Pixels, originals: Pixels) -> Floats:
    """Peak signal-to-noise ratio of each sample with its original, in dB; 58.9, that of rounding to bytes, at most.

    Args:
        pictures, originals: [samples, frames, height, width, 3].
    """
    errors = ((pictures.astype(np.float64) - originals) ** 2).mean(axis=(1, 2, 3, 4))
    return np.asarray(10 * np.log10(255**2 / np.maximum(errors, ROUNDING)))


def ssim(pictures: Pixels, originals: Pixels) -> Floats:
    """Structural similarity of each sample with its original, the mean over frames; 1 where they are the same.

    Args:
        pictures, originals: [samples, frames, height, width, 3], of at least 11 pixels a side.

    Raises:
        EvaluationError: torchmetrics is missing.

    Source: Wang et al., IEEE Transactions on Image Processing 13 (2004), a Gaussian window of 11 pixels.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure as similarity
    except ImportError as error:
        raise EvaluationError(
            'ssim needs torchmetrics, which is not installed; pip install "ld-pruner[evaluation]"'
        ) from error

    def of_sample(one: Pixels, other: Pixels) -> float:
        # A frame at a time: what it keeps of a picture is thirty times as large.
        frames = [
            [torch.from_numpy(frame.astype(np.float64)).permute(2, 0, 1)[None] for frame in each]
            for each in (one, other)
        ]
        found = [similarity(first, second, data_range=255.0) for first, second in zip(*frames, strict=True)]
        return float(np.mean([float(value) for value in found if isinstance(value, torch.Tensor)]))

    return np.array([of_sample(one, other) for one, other in zip(pictures, originals, strict=True)])
