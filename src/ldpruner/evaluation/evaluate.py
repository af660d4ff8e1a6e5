"""A pruned pipeline beside its original: what each costs, and how good what they draw is."""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline

from ldpruner.errors import EvaluationError
from ldpruner.evaluation import metrics as quality
from ldpruner.evaluation.drawn import SampleBatch, read_samples
from ldpruner.evaluation.features import Classifier, Extractor, Features, find_clip_score, find_extractor
from ldpruner.evaluation.media import Folder, find_media
from ldpruner.evaluation.metrics import Interval
from ldpruner.evaluation.observations import PAIRED, Observations, Observer, batches, observed
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.sampling import BATCH_SIZE, largest_batch
from ldpruner.profiling.benchmark import ROUNDS, compare
from ldpruner.scoring.importance import Floats, frechet_distance
from ldpruner.values import Value

COSTS = ("latency_ms", "latency_ratio", "peak_memory_bytes", "parameters", "macs")
OF_SETS = ("frechet_distance", "kid", "precision", "recall", "inception_score")  # of the features of all samples
METRICS = (*COSTS, "latent_score", *OF_SETS, "clip_score", *PAIRED)
DECODED_BATCH = 8  # pictures made at once: decoding takes more memory than denoising
FEWEST = quality.NEIGHBOURS + 2  # samples: each one drawn has its third nearest neighbour
PACKAGES = ("ld-pruner", "torch", "diffusers", "transformers", "torchmetrics", "numpy", "scipy")

logger = logging.getLogger(__name__)


class Measure(Value):
    """One metric of both pipelines; None where there is no such thing.

    Attributes:
        metric: its name, one of METRICS.
        original: its value for the original: beside itself where it compares a sample with the original's.
        pruned: its value for the pruned pipeline.
        interval: of the pruned value, 95 %; of times, the tenth and ninetieth percentile of the rounds.
        noise_floor: its value for the original on one set of seeds beside the original on another. A pruned value that
            is no worse is as good as the original's by this metric and this many samples.
    """

    metric: str
    original: int | float | None
    pruned: int | float | None
    interval: Interval | None = None
    noise_floor: float | None = None


class Evaluation(Value):
    """All that was measured, and how: probe, seeds, counts, feature network, data, device, versions."""

    metrics: tuple[Measure, ...]
    protocol: dict[str, Any]

    def __getitem__(self, metric: str) -> Measure:
        """The measure of this name; KeyError if it was not measured."""
        return {one.metric: one for one in self.metrics}[metric]


def evaluate(  # noqa: PLR0913  (each is a choice of its own)
    pruned: DiffusionPipeline,
    reference: DiffusionPipeline,
    probe: Probe | None = None,
    *,
    data: Path | str | None = None,
    features: Features = "latents",
    clip: str | None = None,
    metrics: Collection[str] = METRICS,
    component: str | None = None,
    batch_size: int | None = None,
) -> Evaluation:
    """Measures cost and quality of a pruned pipeline beside its original.

    It costs 3 * samples * steps denoiser calls on one sample each: the pruned pipeline draws once, the original once
    with the same seeds and once with others. Timing takes 2 * (ROUNDS + 2) * steps more, and finding out whether
    samples can be drawn in batches 4 * steps. Nothing is decoded if neither the features nor the metrics need it.

    Args:
        pruned: the pruned pipeline.
        reference: the original.
        probe: how many samples, in how many steps, of which prompts. The seeds are those of the two probes after it,
            which are not the ones that operators were scored with.
        data: a folder of pictures or sounds that samples are compared with, in features other than the latents; None
            compares them with the original's on other seeds.
        features: `latents`, `inception`, the folder or Hub id of a network of transformers, or an `Extractor`.
        clip: the folder or Hub id of a CLIP model that scores how pictures fit their prompts.
        metrics: which to measure; those that do not apply are left out.
        component: which network was pruned, of pipelines with more than one denoiser.
        batch_size: how many samples to draw at once; 16, or 8 where they are decoded, if None.

    Raises:
        DataError: there is no data, or it is broken.
        EvaluationError: features or settings do not fit the pipeline.
        NonFiniteLatents: one of the pipelines draws what is not a number.
    """
    if metrics is METRICS and find_spec("torchmetrics") is None:
        logger.info('no SSIM, which needs torchmetrics: pip install "ld-pruner[evaluation]"')
        metrics = tuple(name for name in METRICS if name != "ssim")
    probe = (probe or Probe()).completed(reference)
    _check(probe, data, features, metrics)
    if clip is not None and "prompt" not in probe.arguments(reference, [0]):
        raise EvaluationError(f"{type(reference).__name__} takes no prompts; leave out clip={clip!r}")
    folder = find_media(data) if data is not None else None
    extractor = find_extractor(features, reference.device)
    match = find_clip_score(clip, reference.device) if clip is not None else None
    observer = Observer(extractor, match, frozenset(metrics))
    seeds = [probe.model_copy(update={"seed": probe.seed + shift}) for shift in (1, 2)]
    batch = largest_batch(reference, seeds[0], batch_size or (DECODED_BATCH if observer.decodes else BATCH_SIZE))
    original, other, moved, example = observed(pruned, reference, (seeds[0], seeds[1]), observer, batch)
    real = _features_of(folder, example, extractor) if folder is not None else other["features"]
    rows = [
        *_costs(pruned, reference, probe, component, metrics),
        *_paired(original, other, moved, observer.metrics),
        *_of_sets((original["features"], other["features"], moved["features"]), real, observer),
    ]
    found = {row.metric: row for row in rows}
    settings = {"features": extractor.name, "clip": clip, "batch": batch, "decoded": observer.decodes}
    return Evaluation(
        metrics=tuple(found[name] for name in METRICS if name in metrics and name in found),
        protocol=settings | _protocol(reference, seeds, folder, len(real)),
    )


def _check(probe: Probe, data: Path | str | None, features: Features, metrics: Collection[str]) -> None:
    """Finds fault with the settings before anything is drawn."""
    if unknown := sorted(set(metrics) - set(METRICS)):
        raise EvaluationError(f"no metric {unknown[0]!r}; the metrics are {', '.join(METRICS)}")
    if probe.samples < FEWEST:
        raise EvaluationError(f"{probe.samples} samples are too few to compare; give the probe at least {FEWEST}")
    if data is not None and features == "latents":
        raise EvaluationError(
            f"files such as those of {str(data)!r} have no latents; choose features: inception, a folder or a Hub id"
        )


def _features_of(folder: Folder, example: SampleBatch, extractor: Extractor) -> Floats:
    """The features of the files of a folder, read a few at a time."""
    parts = [extractor(read_samples(files, example)) for files in batches(folder.files, DECODED_BATCH)]
    found = np.concatenate(parts)
    if len(found) < FEWEST:
        raise EvaluationError(f"{folder.path} holds {len(found)} files, too few to compare; give at least {FEWEST}")
    return found


def _costs(
    pruned: DiffusionPipeline,
    reference: DiffusionPipeline,
    probe: Probe,
    component: str | None,
    asked: Collection[str],
) -> list[Measure]:
    if not set(COSTS) & set(asked):
        return []
    comparison = compare({"original": reference, "pruned": pruned}, probe, component=component)
    one, two = comparison.pipelines
    ratio, times = comparison.latency_ratio, two.latency_ms
    assert ratio is not None
    return [
        Measure(
            metric="latency_ms",
            original=one.latency_ms.median,
            pruned=times.median,
            interval=(times.p10, times.p90),
        ),
        Measure(metric="latency_ratio", original=1.0, pruned=ratio.median, interval=(ratio.p10, ratio.p90)),
        *(
            Measure(metric=name, original=getattr(one, name), pruned=getattr(two, name))
            for name in ("peak_memory_bytes", "parameters", "macs")
        ),
    ]


def _paired(original: Observations, other: Observations, moved: Observations, asked: Collection[str]) -> list[Measure]:
    """Means over samples, of each with its original or with its prompt; and the score of the whole plan."""
    rows = [
        Measure(
            metric=name,
            original=quality.mean(original[name]),
            pruned=quality.mean(moved[name]),
            interval=quality.mean_interval(moved[name]),
            noise_floor=quality.mean(other[name]),
        )
        for name in ("clip_score", *PAIRED)
        if name in moved
    ]
    if "latent_score" not in asked:
        return rows
    first, second, baseline_sample = (one["latents"] for one in (original, other, moved))
    scores = quality.latent_scores(baseline_sample, first)
    measure = Measure(
        metric="latent_score",
        original=0.0,
        pruned=quality.point_estimate(scores, len(first)),
        interval=quality.interval(scores, len(first)),
        noise_floor=quality.point_estimate(quality.latent_scores(second, first), len(first)),
    )
    return [*rows, measure]


@dataclass(frozen=True)
class _SetMetric:
    """A metric of features and the reference's, and its interval."""

    value: Callable[[Floats, Floats], float]
    interval: Callable[[Floats, Floats], Interval]


_SET_METRICS = {
    "frechet_distance": _SetMetric(frechet_distance, quality.frechet_interval),
    "kid": _SetMetric(quality.kernel_distance, quality.kernel_interval),
    "precision": _SetMetric(
        lambda features, real: quality.mean(quality.inside(features, real)),
        lambda features, real: quality.mean_interval(quality.inside(features, real)),
    ),
    "recall": _SetMetric(
        lambda features, real: quality.mean(quality.inside(real, features)),
        lambda features, real: quality.mean_interval(quality.inside(real, features)),
    ),
}


def _of_sets(features: tuple[Floats, Floats, Floats], real: Floats, observer: Observer) -> list[Measure]:
    """Metrics of the features of the original, of the original on other seeds, and of the pruned pipeline."""
    original, other, moved = features
    rows = [
        Measure(
            metric=name,
            original=metric.value(original, real),
            pruned=metric.value(moved, real),
            interval=metric.interval(moved, real),
            noise_floor=metric.value(original, other),
        )
        for name, metric in _SET_METRICS.items()
        if name in observer.metrics
    ]
    if isinstance(observer.extractor, Classifier) and "inception_score" in observer.metrics:
        rows.append(_inception_score([observer.extractor.probabilities(one) for one in features]))
    return rows


def _inception_score(classes: Sequence[Floats]) -> Measure:
    original, other, moved = (quality.inception_score(one) for one in classes)
    interval = quality.inception_interval(classes[2])
    return Measure(metric="inception_score", original=original, pruned=moved, interval=interval, noise_floor=other)


def _protocol(
    reference: DiffusionPipeline, seeds: Sequence[Probe], folder: Folder | None, compared: int
) -> dict[str, Any]:
    """What else to write down, so that the same numbers can be measured again."""
    return {
        "probe": seeds[0].model_dump(mode="json"),
        "seeds": {"samples": seeds[0].seed, "noise_floor": seeds[1].seed},
        "samples": seeds[0].samples,
        "reference": {
            "samples": compared,
            "folder": str(folder.path) if folder else None,
            "digest": folder.digest if folder else None,
        },
        "latency": {"rounds": ROUNDS, "samples": 1, "interval": "10th to 90th percentile of the rounds"},
        "bootstrap": {
            "resamples": quality.RESAMPLES,
            "confidence": quality.CONFIDENCE,
            "seed": 0,
            "interval": "percentiles, moved by the bias; the reference is not resampled, except for recall",
        },
        "pipeline": type(reference).__name__,
        "device": str(reference.device),
        "precision": str(reference.dtype).removeprefix("torch."),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # torchmetrics is optional
            continue
    return found
