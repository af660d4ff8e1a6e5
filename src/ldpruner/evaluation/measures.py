"""The rows of an evaluation: each metric of both pipelines, from what was observed of their samples."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from ldpruner.evaluation.features import Classifier, Extractor
from ldpruner.evaluation.metrics import (
    NEIGHBOURS,
    PICTURE_METRICS,
    SET_METRICS,
    Interval,
    Statistic,
    cmmd,
    inception_score,
    mean,
    shift_of_latents,
)
from ldpruner.evaluation.scorers import Scorer
from ldpruner.profiling.benchmark import Comparison
from ldpruner.values import Value

COSTS = ("latency_ms", "latency_ratio", "peak_memory_bytes", "parameters", "macs")
# Each compares a sample with the original's of the same seed; the latent shift compares all with all.
DISTANCES = ("latent_distance", "dino_distance", "lpips", *PICTURE_METRICS)
PAIRED = ("latent_shift", *DISTANCES)
METRICS = (*COSTS, *SET_METRICS, "cmmd", "inception_score", "clip_score", *PAIRED)
HIGHER_IS_BETTER = ("precision", "recall", "inception_score", "clip_score", "psnr", "ssim")
MIN_SAMPLES = NEIGHBOURS + 2  # each sample needs a third nearest neighbour

Observations: TypeAlias = Mapping[str, NDArray[Any]]  # by name, of each sample
Runs: TypeAlias = Sequence[Observations]  # of the original, the original on other seeds, and the pruned pipeline


class Measure(Value):
    """One metric of both pipelines.

    Attributes:
        metric: its name, one of `METRICS`, or that of a scorer.
        original: the original's value; None for metrics that compare each sample with the original's.
        pruned: the pruned pipeline's value.
        interval: of the pruned value.
        interval_type: `confidence` (95 %, by the bootstrap), or `percentiles` (10th and 90th, of timings).
        noise_floor: the value for the original on one set of seeds against the original on another; None for costs.
        higher_is_better: left out, that of the metric of this name.
        difference: the mean of pruned - original on the same seed; None unless each sample has a score of its own.
        difference_interval: 95 %, by the bootstrap over the pairs.
    """

    metric: str
    original: int | float | None
    pruned: int | float | None
    interval: Interval | None = None
    interval_type: Literal["confidence", "percentiles"] | None = None
    noise_floor: float | None = None
    higher_is_better: bool = False
    difference: float | None = None
    difference_interval: Interval | None = None

    @model_validator(mode="before")
    @classmethod
    def _direction(cls, fields: Any) -> Any:
        is_higher = isinstance(fields, dict) and fields.get("metric") in HIGHER_IS_BETTER
        return {"higher_is_better": True, **fields} if is_higher else fields

    @property
    def within_noise_floor(self) -> bool | None:
        """Whether these samples cannot tell the pruned pipeline from the original; None for costs.

        True if the better end of an interval is no worse than 0 for a difference of pairs; than the original's value;
        or than the noise floor for metrics that have no value of the original.
        """
        limit, interval = self.noise_floor if self.original is None else self.original, self.interval
        if self.difference_interval is not None:
            limit, interval = 0, self.difference_interval
        if self.noise_floor is None or interval is None or limit is None:
            return None
        return interval[1] >= limit if self.higher_is_better else interval[0] <= limit


def cost_measures(comparison: Comparison) -> Iterator[Measure]:
    """What both pipelines cost."""
    original, pruned = comparison.pipelines
    assert comparison.latency_ratio is not None
    timings = ((original.latency_ms.median, pruned.latency_ms), (1.0, comparison.latency_ratio))
    for name, (value, times) in zip(COSTS, timings, strict=False):
        interval = times.p10, times.p90
        yield Measure(metric=name, original=value, pruned=times.median, interval=interval, interval_type="percentiles")
    for name in COSTS[len(timings) :]:
        yield Measure(metric=name, original=getattr(original, name), pruned=getattr(pruned, name))


def set_measures(runs: Runs, real: Observations, metrics: Collection[str], extractor: Extractor) -> Iterator[Measure]:
    """Metrics of all samples at once.

    Args:
        real: the features to compare with, of files or of the original on other seeds.
        metrics: which to measure.
        extractor: which made the features.
    """
    original, other, pruned = runs
    for name, metric in {**SET_METRICS, "cmmd": cmmd}.items():
        key = "clip" if name == "cmmd" else "features"
        if name in metrics and key in pruned:
            value, ours = (metric(run[key], real[key]) for run in (original, pruned))
            yield _measure(name, value, ours, metric(original[key], other[key]))
    if isinstance(extractor, Classifier) and "inception_score" in metrics:
        value, floor, ours = (inception_score(extractor.probabilities(run["features"])) for run in runs)
        yield _measure("inception_score", value, ours, floor)
    if "latents" in pruned:
        floor, ours = (shift_of_latents(run["latents"], original["latents"]) for run in (other, pruned))
        yield _measure("latent_shift", None, ours, floor)


def sample_measures(runs: Runs, metrics: Collection[str], scorers: Sequence[Scorer]) -> Iterator[Measure]:
    """Metrics with a number for each sample: scores of both pipelines, and distances to the original's sample."""
    original, _, pruned = runs
    scores = {"clip_score": True} if "clip_score" in metrics else {}
    scores |= {scorer.name: scorer.higher_is_better for scorer in scorers}
    for name in (*scores, *(name for name in DISTANCES if name in metrics)):
        if name not in pruned:
            continue
        value, floor, ours = (mean(run[name]) for run in runs)
        if name in scores:
            difference = mean(pruned[name] - original[name])
            yield _measure(name, value, ours, floor, difference, higher_is_better=scores[name])
        else:
            yield _measure(name, None, ours, floor)


def category_measures(
    runs: Runs, categories: Sequence[str], metrics: Collection[str], scorers: Sequence[Scorer]
) -> dict[str, tuple[Measure, ...]]:
    """The metrics with a number for each sample, over the samples of each category.

    Args:
        categories: of each sample.
    """
    names = np.array(categories)

    def of_category(name: str) -> Runs:
        return [{key: values[names == name] for key, values in run.items() if values.ndim == 1} for run in runs]

    return {name: tuple(sample_measures(of_category(name), metrics, scorers)) for name in dict.fromkeys(categories)}


def _measure(
    metric: str,
    original: Statistic | None,
    pruned: Statistic,
    floor: Statistic,
    difference: Statistic | None = None,
    **direction: bool,
) -> Measure:
    """A measure; too few samples have no interval, as the bootstrap makes theirs too narrow."""
    has_interval = pruned.samples >= MIN_SAMPLES
    return Measure(
        metric=metric,
        original=original.value if original is not None else None,
        pruned=pruned.value,
        interval=pruned.interval if has_interval else None,
        interval_type="confidence" if has_interval else None,
        noise_floor=floor.value,
        difference=difference.value if difference is not None else None,
        difference_interval=difference.interval if difference is not None and has_interval else None,
        **direction,
    )
