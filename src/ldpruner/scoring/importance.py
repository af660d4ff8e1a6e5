"""How far latents have moved: the score of the method and its alternatives.

Pure functions of two sets of latents, the baseline and the modified. Mean and standard deviation
are over samples, for each latent element; the deviation is that of the samples themselves (divided by m).
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Metric: TypeAlias = Literal["mean_std", "mean_variance", "mse"]
METRICS: tuple[Metric, ...] = get_args(Metric)


@dataclass(frozen=True)
class Moments:
    """Running moments of latents, and the distance of each sample from the baseline.

    Attributes:
        mean: [elements] mean over samples.
        m2: [elements] sum of squared deviations from the mean.
        squared_errors: [samples] mean squared difference of each sample from the same sample of the baseline.
    """

    mean: Floats
    m2: Floats
    squared_errors: Floats

    @property
    def count(self) -> int:
        return len(self.squared_errors)

    @property
    def variance(self) -> Floats:
        return self.m2 / self.count

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.squared_errors).all())  # of each sample, over all its elements


def moments(latents: Floats, baseline: Floats) -> Moments:
    """The moments of latents [samples, channels, ...], compared with the baseline's latents of the same samples."""
    flat, reference = latents.reshape(len(latents), -1), baseline.reshape(len(baseline), -1)
    mean = flat.mean(axis=0)
    return Moments(mean, ((flat - mean) ** 2).sum(axis=0), ((flat - reference) ** 2).mean(axis=1))


def merged(first: Moments, second: Moments) -> Moments:
    """The moments of two disjoint sets of samples together (Chan, Golub and LeVeque, 1979)."""
    count, difference = first.count + second.count, second.mean - first.mean
    return Moments(
        first.mean + difference * (second.count / count),
        first.m2 + second.m2 + difference**2 * (first.count * second.count / count),
        np.concatenate([first.squared_errors, second.squared_errors]),
    )


def importance(baseline: Moments, modified: Moments, metric: Metric = "mean_std") -> float:
    """How much a modification moved the latents; 0 if not at all, infinity if they are not finite.

    - `mean_std`: || mean(Z) - mean(Z') ||_2 + || std(Z) - std(Z') ||_2, the score of LD-Pruner (arXiv 2404.11936).
    - `mean_variance`: the same with the variance in place of the standard deviation.
    - `mse`: mean squared error of the paired latents.
    """
    if not modified.is_finite:
        return float("inf")
    if metric == "mse" or not modified.squared_errors.any():
        return float(modified.squared_errors.mean())
    mean = np.linalg.norm(baseline.mean - modified.mean)
    if metric == "mean_std":
        return float(mean + np.linalg.norm(np.sqrt(baseline.variance) - np.sqrt(modified.variance)))
    return float(mean + np.linalg.norm(baseline.variance - modified.variance))


def cost(score: float, metric: Metric) -> float:
    """What adds up over removals: perturbations of different operators are nearly orthogonal, so their squares do."""
    return score ** power(metric)


def power(metric: Metric) -> int:
    """The exponent that turns a score into an additive cost: 2 for distances, 1 for squared distances."""
    return 1 if metric == "mse" else 2
