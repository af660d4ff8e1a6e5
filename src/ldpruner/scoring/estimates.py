"""What a score of few samples says of the score of many: how it will change, and how sure it is."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from ldpruner.scoring.importance import Floats, Metric, power

STEADY = 1.2  # power of the ratio of two means, for one of very many samples: as it fits zoo:emoji and zoo:digits
FEW = 5  # modifications that tell how scores change with the number of samples
STEEPEST = 0.7  # ratio of squared scores of twice the samples, where it is not known: on the zoo's models 0.65 to 0.8
ENOUGH = 8  # samples from which is told how much samples differ
UNKNOWN = 1.0  # how much they do where that is not known; on the models of the zoo 0.7 to 1.5
WEIGHT = 4  # samples of a modification that say as much of its spread as all others do
WIDER = 1.2  # than samples' distances alone would say: deviations over samples differ more than means
NORMAL = 1.96  # standard errors, for 95 %
UNLIKE = 1.0  # what looks tell of damages is off by: of the logarithm, on the zoo's models 0.7 to 0.9
APART = 0.6  # of an error is the score's own on other samples
REDRAWN = 32  # pairs of seeds, for the stability of ranks


@dataclass(frozen=True)
class Curve:
    """What has been drawn of a modification.

    Attributes:
        scores: by the number of samples, the first 2, 4, 8 and so on, and all.
        distances: [samples] squared distance of each sample from its untouched twin.
        stopped: whether that is how far they were when drawing was stopped on the way.
    """

    scores: dict[int, float]
    distances: Floats
    stopped: bool = False

    @property
    def samples(self) -> int:
        return len(self.distances)

    @property
    def score(self) -> float:
        return self.scores[self.samples]

    @property
    def spread(self) -> float:
        """How much samples differ: the standard deviation of their squared distances, over the mean."""
        mean = self.distances.mean()
        return float(self.distances.std(ddof=1) / mean) if self.samples > 1 and mean > 0 else 0.0

    def first(self, samples: int) -> "Curve":
        """What was known when no more samples had been drawn."""
        scores = {number: score for number, score in self.scores.items() if number <= samples}
        return Curve(scores, self.distances[:samples], self.stopped)


class Change(NamedTuple):
    """From a score of few samples to that of many: the usual factor, and by how much its logarithm scatters."""

    factor: float
    scatter: float


@dataclass(frozen=True)
class Estimate:
    """What is known of a score as one of the whole probe.

    Attributes:
        score: as it is expected to be; infinity if it cannot be removed.
        error: its relative standard error, for samples of other seeds; None where it is not known.
        doubt: its relative standard error, once all samples of the probe are drawn.
        samples: that were drawn; none where it was only looked at.
        stopped: whether drawing was stopped on the way, and the score is at least this.
    """

    score: float
    error: float | None = None
    standard_error_of_score: float = 0.0
    samples: int = 0
    stopped: bool = False


Key = TypeVar("Key")


def estimated(
    curves: Mapping[Key, Curve], effects: Mapping[Key, float], samples: int, metric: Metric
) -> dict[Key, Estimate]:
    """What is known of scores from what was drawn and what was seen in looks.

    Looks tell how modifications compare, of drawn ones also how large scores are. Both err independently, and have a
    say by how little they do.

    Args:
        curves: of modifications, what was drawn.
        effects: of modifications, how far they were seen to move what the denoiser finds, as a mean square.
        samples: of the probe.
        metric: of the scores.
    """
    whole = [one for one in curves.values() if math.isfinite(one.score) and not one.stopped]
    changes, usual = to_many(whole, samples, metric), usual_spread(whole)
    drawn = {key: _drawn(curve, changes, usual, samples, metric) for key, curve in curves.items()}
    looked = _looked(effects, drawn, metric)
    return looked | {key: _combined(one, looked.get(key)) for key, one in drawn.items()}


def _drawn(curve: Curve, changes: Mapping[int, Change], usual: float, samples: int, metric: Metric) -> Estimate:
    error = relative_error(curve, usual, metric)
    left = standard_error_of_score(error, curve.samples / samples)
    if curve.stopped or not math.isfinite(curve.score):
        score = curve.score if math.isfinite(curve.score) else math.inf
        return Estimate(score, None, left, curve.samples, curve.stopped)
    change = changes[curve.samples]
    score = shrunk_score(curve, curve.samples, samples, metric) * change.factor
    return Estimate(score, math.hypot(error, change.scatter), left, curve.samples)


def _looked(effects: Mapping[Key, float], drawn: Mapping[Key, Estimate], metric: Metric) -> dict[Key, Estimate]:
    scores = {key: effect ** (1 / power(metric)) for key, effect in effects.items()}
    ratios = [one.score / scores[key] for key, one in drawn.items() if one.error is not None and key in scores]
    scale, unlike = float(np.median(ratios)) if ratios else 1.0, UNLIKE / power(metric)
    return {key: Estimate(scale * score, unlike, unlike) for key, score in scores.items()}


def _combined(drawn: Estimate, looked: Estimate | None) -> Estimate:
    """The mean of both logarithms, each with the more weight, the less it errs."""
    if looked is None or drawn.error is None or not drawn.score or not looked.score:
        return drawn
    share = drawn.standard_error_of_score**2 / (drawn.standard_error_of_score**2 + looked.standard_error_of_score**2)
    score, less = drawn.score * (looked.score / drawn.score) ** share, math.sqrt(1 - share)
    return Estimate(score, less * drawn.error, less * drawn.standard_error_of_score, drawn.samples)


def shrunk_score(curve: Curve, number: int, samples: int, metric: Metric) -> float:
    """The score of the first samples, with less weight on those few that were moved much farther than others.

    Distances are spread like their logarithms, and their mean hangs on a few. Their geometric mean does not: by its
    ratio to the mean, modifications can be compared; the more so, the fewer of `samples` are known.

    Args:
        curve: what has been drawn.
        number: how many samples count.
        samples: of how many the score is wanted.
        metric: of the scores.
    """
    distances = curve.distances[:number]
    if number == samples or not distances.all():
        return curve.scores[number]
    ratio = float(np.exp(np.log(distances).mean()) / distances.mean())
    return curve.scores[number] * float(ratio ** (STEADY * (1 - number / samples) ** 2 / power(metric)))


def to_many(curves: Sequence[Curve], samples: int, metric: Metric) -> dict[int, Change]:
    """By the number of samples, how a steadied score changes to that of `samples`: noise counts as distance.

    Read off the modifications of which more was drawn, from one number of samples to the next, and carried on.
    """
    numbers = sorted({number for curve in curves for number in curve.scores} | {samples})
    steps, ratio, variance = list[tuple[float, float]](), 1.0, 0.0
    for few, more in itertools.pairwise(numbers):
        known = [
            shrunk_score(one, more, samples, metric) / shrunk_score(one, few, samples, metric)
            for one in curves
            if more in one.scores and one.scores.get(few)
        ]
        if len(known) >= FEW:
            ratio, variance = float(np.median(known)), float(np.log(known).var())
        else:
            ratio = _next(ratio)
            variance = max(variance / 2, math.log(ratio) ** 2)
        steps.append((ratio, variance))
    changes = {samples: Change(1.0, 0.0)}
    for place, number in enumerate(numbers[:-1]):
        ratios, variances = zip(*steps[place:], strict=True)
        changes[number] = Change(math.prod(ratios), math.sqrt(sum(variances)))
    return changes


def _next(ratio: float) -> float:
    """The ratio of scores of twice the samples that follows one: their squares fall as a + b / samples."""
    return float(np.sqrt(np.clip(1.5 - 0.5 / ratio**2, STEEPEST, 1)))


def usual_spread(curves: Sequence[Curve]) -> float:
    """How much samples differ, of most modifications; no less than usual, as those drawn often are not like all."""
    known = [one.spread for one in curves if one.samples >= ENOUGH]
    return max(UNKNOWN, float(np.median(known))) if len(known) >= FEW else UNKNOWN


def relative_error(curve: Curve, usual: float, metric: Metric) -> float:
    """The standard error of a score, over the score, for samples of other seeds."""
    variances, weights = np.square([usual, curve.spread]), np.array([WEIGHT, curve.samples - 1])
    return WIDER / power(metric) * float(np.sqrt(weights @ variances / weights.sum() / curve.samples))


def standard_error_of_score(error: float, share: float) -> float:
    """The relative standard error of a score as one of the whole probe.

    Args:
        error: its own, for samples of other seeds.
        share: of the probe that was drawn.
    """
    return error * math.sqrt(max(0.0, 1 - share))


def interval(score: float, error: float) -> tuple[float, float]:
    """The 95 % interval of a score from its relative error; scores are spread like their logarithms."""
    return score * float(np.exp(-NORMAL * error)), score * float(np.exp(NORMAL * error))


def standard_error(score: float, around: tuple[float, float] | None) -> float:
    """The relative error from which `interval` makes an interval; 0 where there is none."""
    return float(np.log(around[1] / score)) / NORMAL if around is not None and score > 0 else 0.0


def rank_stability(scores: Sequence[float], errors: Sequence[float]) -> float | None:
    """How much alike scores on two seeds rank: Spearman's correlation that is to be expected, 1 for the same order.

    None of less than two.

    Args:
        scores: as they came out.
        errors: their relative standard errors, for samples of other seeds.
    """
    number = len(scores)
    if number < 2:
        return None
    noise = np.random.default_rng(0).normal(size=(REDRAWN, 2, number))
    ranks = (np.array(scores) * np.exp(APART * np.array(errors) * noise)).argsort(kind="stable").argsort()
    return 1 - 6 * float(np.square(ranks[:, 0] - ranks[:, 1]).sum(axis=1).mean()) / (number * (number**2 - 1))
