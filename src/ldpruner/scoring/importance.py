"""How far latents have moved: the score of the method and its alternatives.

Pure functions of what is known about two sets of latents, the untouched and the modified. Mean and standard
deviation are over samples, for each latent element; the deviation is that of the samples themselves (divided by m).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Metric: TypeAlias = Literal["mean_std", "mean_variance", "mean", "std", "mse", "cosine", "frechet"]
METRICS: tuple[Metric, ...] = get_args(Metric)
QUADRATIC: tuple[Metric, ...] = ("mse", "cosine", "frechet")  # in how far the latents moved; the others are linear


@dataclass(frozen=True)
class Moments:
    """Running moments of latents, and what compares each sample with its untouched twin.

    Attributes:
        count: how many samples.
        mean: [elements] their mean.
        m2: [elements] sum of squared deviations from the mean.
        squared_errors: [samples] each sample's mean squared difference from its untouched twin.
        cosine_distances: [samples] 1 - the cosine of each sample and its untouched twin.
        pooled: [samples, channels] each sample's mean over space.
    """

    count: int
    mean: Floats
    m2: Floats
    squared_errors: Floats
    cosine_distances: Floats
    pooled: Floats

    @property
    def variance(self) -> Floats:
        return self.m2 / self.count

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.squared_errors).all())  # of each sample, over all its elements


def moments(latents: Floats, baseline: Floats) -> Moments:
    """The moments of latents [samples, channels, ...] beside the untouched ones of the same samples."""
    flat, baseline_sample = latents.reshape(len(latents), -1), baseline.reshape(len(baseline), -1)
    mean = flat.mean(axis=0)
    norms = np.linalg.norm(flat, axis=1) * np.linalg.norm(baseline_sample, axis=1)
    cosine = (flat * baseline_sample).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
    return Moments(
        count=len(flat),
        mean=mean,
        m2=((flat - mean) ** 2).sum(axis=0),
        squared_errors=((flat - baseline_sample) ** 2).mean(axis=1),
        cosine_distances=1 - cosine,
        pooled=latents.reshape(*latents.shape[:2], -1).mean(axis=2),
    )


def merged(parts: Sequence[Moments]) -> Moments:
    """The moments of all samples from those of disjoint blocks (Chan, Golub and LeVeque, 1979)."""
    count = sum(part.count for part in parts)
    mean = np.asarray(sum(part.count * part.mean for part in parts) / count)
    between = sum(part.count * (part.mean - mean) ** 2 for part in parts)
    return Moments(
        count=count,
        mean=mean,
        m2=np.asarray(sum(part.m2 for part in parts) + between),
        squared_errors=np.concatenate([part.squared_errors for part in parts]),
        cosine_distances=np.concatenate([part.cosine_distances for part in parts]),
        pooled=np.concatenate([part.pooled for part in parts]),
    )


def importance(baseline: Moments, modified: Moments, metric: Metric = "mean_std") -> float:
    """How much a modification moved the latents; 0 if not at all, infinity if they are not finite.

    The default is the score of LD-Pruner (arXiv 2404.11936): || mean(Z) - mean(Z') ||_2 + || std(Z) - std(Z') ||_2.
    """
    if not modified.is_finite:
        return float("inf")
    return float(_SCORES[metric](baseline, modified))


def cost(score: float, metric: Metric) -> float:
    """What adds up over removals: perturbations of different operators are nearly orthogonal, so their squares do."""
    return score ** power(metric)


def power(metric: Metric) -> int:
    """Of a score, that its damage is."""
    return 1 if metric in QUADRATIC else 2


def _mean(baseline: Moments, modified: Moments) -> float:
    return float(np.linalg.norm(baseline.mean - modified.mean))


def _std(baseline: Moments, modified: Moments) -> float:
    return float(np.linalg.norm(np.sqrt(baseline.variance) - np.sqrt(modified.variance)))


def _variance(baseline: Moments, modified: Moments) -> float:
    return float(np.linalg.norm(baseline.variance - modified.variance))


def _frechet(baseline: Moments, modified: Moments) -> float:
    return frechet_distance(baseline.pooled, modified.pooled)


_SCORES: dict[Metric, Callable[[Moments, Moments], float]] = {
    "mean_std": lambda z, other: _mean(z, other) + _std(z, other),
    "mean_variance": lambda z, other: _mean(z, other) + _variance(z, other),
    "mean": _mean,
    "std": _std,
    "mse": lambda _, other: float(other.squared_errors.mean()),
    "cosine": lambda _, other: float(other.cosine_distances.mean()),
    "frechet": _frechet,
}


@dataclass(frozen=True)
class Gaussian:
    """The Gaussian fitted to features.

    Attributes:
        mean: [features].
        root: F [rows, features] of no more rows than features, or samples, where F'F is the covariance, divided by the
            number of samples.
    """

    mean: Floats
    root: Floats

    @classmethod
    def of(cls, features: Floats, counts: Floats | None = None) -> "Gaussian":
        """Of features [samples, features], each sample there once or as often as `counts` says."""
        counts = np.ones(len(features)) if counts is None else counts
        shares = counts / counts.sum()
        mean = shares @ features
        centred = (features - mean) * np.sqrt(shares)[:, None]
        tall = len(centred) > centred.shape[1]
        return cls(mean, np.asarray(np.linalg.qr(centred, mode="r")) if tall else centred)


def frechet_distance(features: Floats, reference: Floats) -> float:
    """Frechet distance of the Gaussians fitted to two sets of features [samples, features]."""
    return between(Gaussian.of(features), Gaussian.of(reference))


def between(first: Gaussian, second: Gaussian) -> float:
    """Frechet distance of two Gaussians (Dowson and Landau, 1982).

    With roots A and B, tr((A'A B'B)^1/2) is the sum of the singular values of AB'. No root is taken of a covariance,
    which is singular where samples are few or repeated.
    """
    mean = first.mean - second.mean
    shared = np.linalg.svd(first.root @ second.root.T, compute_uv=False).sum()
    return max(0.0, float(mean @ mean + (first.root**2).sum() + (second.root**2).sum() - 2 * shared))
