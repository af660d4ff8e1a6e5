"""How good samples are: pure functions of their features [samples, features], and of paired samples.

Each has its interval, by drawing the samples again with replacement while what they are compared with stays. A draw is
told by how often each sample is there, so that none is copied, and many draws are one matrix.
"""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray

from ldpruner.errors import EvaluationError
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.sampling import BATCH_SIZE, draw_latents, largest_batch
from ldpruner.scoring.importance import Floats, Gaussian, Metric, between, importance, moments

Pixels: TypeAlias = NDArray[np.uint8]
Interval: TypeAlias = tuple[float, float]
Statistic: TypeAlias = Callable[[Floats], Floats]  # [draws] of how often each sample is there, [draws, samples]

RESAMPLES = 200
CONFIDENCE = 0.95
NEIGHBOURS = 3  # of precision and recall, as in their paper
WINDOW = 11  # pixels of the window of SSIM
ROUNDING = 1 / 12  # squared error of rounding to bytes: no smaller one can be seen
ROWS = 1024  # of a matrix between all samples that are there at once
ELEMENTS = 4096  # of latents that are


def interval(statistic: Statistic, samples: int, *, lowest: float = 0) -> Interval:
    """The 95 % interval of a statistic of samples, by the bootstrap (Efron, 1979), its bias taken off.

    Args:
        statistic: of draws of the samples.
        samples: how many there are.
        lowest: what the statistic cannot be below.
    """
    random = np.random.default_rng(0)
    chosen = (random.integers(samples, size=samples) for _ in range(RESAMPLES))
    drawn = statistic(np.stack([np.bincount(one, minlength=samples) for one in chosen]).astype(np.float64))
    # Samples drawn again are fewer distinct ones and lie further off: of 40 with 64 features by a quarter. Percentiles
    # miss the measured distance, the basic interval mirrors them below it; moved ones hold what other seeds measure.
    value = point_estimate(statistic, samples)
    centred = drawn - drawn.mean() + value
    low, high = np.percentile(centred, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return max(lowest, min(value, float(low))), max(value, float(high))


def point_estimate(statistic: Statistic, samples: int) -> float:
    """A statistic of the samples as they are, each of them once."""
    return float(statistic(np.ones((1, samples)))[0])


def _parts(length: int, size: int) -> Iterator[slice]:
    return (slice(first, first + size) for first in range(0, length, size))


def mean(values: Floats) -> float:
    """The mean over samples."""
    return point_estimate(_means(values), len(values))


def mean_interval(values: Floats) -> Interval:
    """The interval of a mean over samples."""
    return interval(_means(values), len(values))


def _means(values: Floats) -> Statistic:
    return lambda counts: np.asarray(counts @ values / counts.sum(axis=1))


def frechet_interval(features: Floats, reference: Floats) -> Interval:
    """The interval of a Frechet distance between as many samples; more samples are nearer to each other."""
    real = Gaussian.of(reference)

    def distances(counts: Floats) -> Floats:
        return np.array([between(Gaussian.of(features, one), real) for one in counts])

    return interval(distances, len(features))


def kernel_distance(features: Floats, reference: Floats) -> float:
    """KID: the unbiased squared maximum mean discrepancy, of kernel (x y / features + 1)^3.

    Unbiased means that it may be below 0. Source: Binkowski et al., arXiv 1801.01401, section 4.
    """
    return point_estimate(kernel_distances(features, reference), len(features))


def kernel_interval(features: Floats, reference: Floats) -> Interval:
    """The interval of a KID."""
    return interval(kernel_distances(features, reference), len(features), lowest=-np.inf)


def kernel_distances(features: Floats, reference: Floats) -> Statistic:
    """The discrepancies of draws; a sample and its own copy are no pair."""

    def kernel(first: Floats, second: Floats) -> Floats:
        product = first @ second.T / features.shape[1] + 1
        return np.asarray(product * product * product)  # ten times as fast as a power

    def itself(samples: Floats) -> Floats:
        return np.asarray(((samples**2).mean(axis=1) + 1) ** 3)

    count, parts = len(reference), list(_parts(len(features), ROWS))
    across = np.concatenate([kernel(features[part], reference).mean(axis=1) for part in parts])
    among = sum(float(kernel(reference[part], reference).sum()) for part in _parts(count, ROWS))
    behind = (among - float(itself(reference).sum())) / (count * (count - 1))

    def statistic(counts: Floats) -> Floats:
        within = -(counts**2) @ itself(features)
        for part in parts:
            within += ((counts @ kernel(features, features[part])) * counts[:, part]).sum(axis=1)
        total = counts.sum(axis=1)
        within /= total**2 - (counts**2).sum(axis=1)
        return np.asarray(within + behind - 2 * counts @ across / total)

    return statistic


def inside(features: Floats, others: Floats, neighbours: int = NEIGHBOURS) -> Floats:
    """Which samples lie where the others do: [samples], 1 or 0.

    That is, nearer to one of the others than this one's third nearest neighbour among them. The mean is the precision
    of samples among real ones, and the recall of real ones among samples. The others are not resampled, as copies
    would be each other's neighbours: the interval of both is that of the mean.

    Source: Kynkaanniemi et al., arXiv 1904.06991, equations 1 and 2.
    """
    samples, known = torch.from_numpy(features), torch.from_numpy(others)
    # the nearest of all is itself
    radii = torch.cat([torch.cdist(part, known).kthvalue(neighbours + 1).values for part in known.split(ROWS)])
    near = torch.cat([(torch.cdist(part, known) <= radii).any(dim=1) for part in samples.split(ROWS)])
    return np.asarray(near.double().numpy())


def inception_score(probabilities: Floats) -> float:
    """How surely samples are of one class each, and how evenly of all: 1 to the number of classes.

    Args:
        probabilities: [samples, classes], of all samples at once rather than in ten parts.

    Source: Salimans et al., arXiv 1606.03498, section 4.
    """
    return point_estimate(inception_scores(probabilities), len(probabilities))


def inception_interval(probabilities: Floats) -> Interval:
    """The interval of an inception score."""
    return interval(inception_scores(probabilities), len(probabilities), lowest=1)


def inception_scores(probabilities: Floats) -> Statistic:
    """The mean relative entropy of a draw: the entropy of all its samples together, less their own."""

    def terms(one: Floats) -> Floats:
        return np.asarray((one * np.log(np.maximum(one, np.finfo(np.float64).tiny))).sum(axis=1))

    def statistic(counts: Floats) -> Floats:
        shares = counts / counts.sum(axis=1, keepdims=True)
        return np.asarray(np.exp(shares @ terms(probabilities) - terms(shares @ probabilities)))

    return statistic


def latent_scores(latents: NDArray[np.floating], originals: NDArray[np.floating]) -> Statistic:
    """The score of the method of draws of latents [samples, ...], those of a whole plan, and of their originals."""
    flat, twins = (one.reshape(len(one), -1) for one in (latents, originals))

    def statistic(counts: Floats) -> Floats:
        shares, moved = counts / counts.sum(axis=1, keepdims=True), np.zeros((2, len(counts)))
        for part in _parts(flat.shape[1], ELEMENTS):
            here, before = (_spread(shares, one[:, part].astype(np.float64)) for one in (flat, twins))
            moved += np.square(here - before).sum(axis=2)
        return np.asarray(np.sqrt(moved).sum(axis=0))

    return statistic


def _spread(shares: Floats, values: Floats) -> Floats:
    """The means and the standard deviations of draws: [2, draws, elements]."""
    mean = shares @ values
    return np.stack([mean, np.sqrt(np.maximum(shares @ np.square(values) - mean**2, 0))])


def latent_distance(latents: Floats, originals: Floats) -> Floats:
    """The root mean square difference of each sample's latents from its original's, [samples].

    Args:
        latents, originals: [samples, ...].
    """
    flat = np.square(latents - originals).reshape(len(latents), -1)
    return np.asarray(np.sqrt(flat.mean(axis=1)))


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


def latent_score(
    first: DiffusionPipeline, second: DiffusionPipeline, probes: tuple[Probe, Probe], metric: Metric = "mean_std"
) -> float:
    """How far the latents of two pipelines are apart, each on its own probe: the score of a whole plan.

    The same pipeline on probes of different seeds gives the noise floor.
    """
    drawn = [_drawn(pipeline, probe) for pipeline, probe in zip((first, second), probes, strict=True)]
    return importance(moments(drawn[0], drawn[0]), moments(drawn[1], drawn[0]), metric)


def _drawn(pipeline: DiffusionPipeline, probe: Probe) -> Floats:
    indices, size = range(probe.samples), largest_batch(pipeline, probe, BATCH_SIZE)
    batches = [indices[first : first + size] for first in range(0, len(indices), size)]
    latents = [draw_latents(pipeline, probe, batch).double().cpu().numpy() for batch in batches]
    return np.concatenate(latents)


def same_latents(first: DiffusionPipeline, second: DiffusionPipeline, probe: Probe) -> bool:
    """Whether two pipelines give the same latents, to the bit, for the first samples of a probe."""
    samples = range(min(2, probe.samples))
    return bool((draw_latents(first, probe, samples) == draw_latents(second, probe, samples)).all())
