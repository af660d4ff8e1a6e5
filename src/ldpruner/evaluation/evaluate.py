"""Cost and quality of a pruned pipeline, side by side with its original."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray

from ldpruner.errors import EvaluationError, NonFiniteLatents
from ldpruner.evaluation.features import (
    Classifier,
    ClipScore,
    Extractor,
    Features,
    LatentFeatures,
    find_clip_score,
    find_extractor,
)
from ldpruner.evaluation.media import Folder, find_media
from ldpruner.evaluation.metrics import (
    CONFIDENCE,
    NEIGHBOURS,
    PICTURE_METRICS,
    RESAMPLES,
    SET_METRICS,
    SSIM_WINDOW,
    Measure,
    Statistic,
    inception_score,
    latent_distance,
    mean,
    parts,
    shift_of_latents,
)
from ldpruner.evaluation.samples import SampleBatch, read_samples, sample_batch
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.sampling import BATCH_SIZE, largest_batch
from ldpruner.profiling.benchmark import Comparison, compare
from ldpruner.progress import Progress, unreported
from ldpruner.scoring.importance import Floats
from ldpruner.values import Value, check_choice, check_count

COSTS = ("latency_ms", "latency_ratio", "peak_memory_bytes", "parameters", "macs")
PAIRED = ("latent_shift", "latent_distance", *PICTURE_METRICS)  # compare each sample with the original's
METRICS = (*COSTS, *SET_METRICS, "inception_score", "clip_score", *PAIRED)
DECODED_BATCH_SIZE = 8  # decoding takes more memory than denoising
MIN_SAMPLES = NEIGHBOURS + 2  # each sample needs a third nearest neighbour
PACKAGES = ("ld-pruner", "torch", "diffusers", "transformers", "torchmetrics", "numpy", "scipy")

Observations: TypeAlias = Mapping[str, NDArray[Any]]  # by name, of each sample

logger = logging.getLogger(__name__)


class Evaluation(Value):
    """All measures, and how they were made: probe, seeds, counts, feature network, data, device, versions."""

    metrics: tuple[Measure, ...]
    protocol: dict[str, Any]

    def __getitem__(self, metric: str) -> Measure:
        """The measure of this name; KeyError if it was not measured."""
        return {measure.metric: measure for measure in self.metrics}[metric]

    @property
    def worse(self) -> tuple[str, ...]:
        """The quality metrics by which the pruned pipeline is worse than its original, beyond the noise floor."""
        return tuple(measure.metric for measure in self.metrics if measure.within_noise_floor is False)


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
    progress: Progress = unreported,
) -> Evaluation:
    """Measures cost and quality of a pruned pipeline and its original.

    This takes 3 * samples * steps denoiser calls on one sample each: the pruned pipeline samples once, the original
    with the same seeds and with others. Timing and a check that samples can be batched take a few more. Nothing is
    decoded unless features or metrics need it.

    Args:
        pruned: the pruned pipeline.
        reference: the original.
        probe: samples, steps and prompts. The seeds are the next two after the probe's, which scoring did not see.
        data: a folder of pictures or sounds to compare samples with, in features other than the latents. None compares
            them with the original's samples of other seeds.
        features: `latents`, `inception`, the folder or Hub id of a transformers network, or an `Extractor`.
        clip: the folder or Hub id of a CLIP model, which scores how well pictures match their prompts.
        metrics: which to measure; those that do not apply are left out.
        component: which network was pruned, in pipelines with more than one denoiser.
        batch_size: samples at once; None means 16, or 8 if they are decoded.
        progress: wraps the batches of samples and the rounds of timings.

    Raises:
        DataError: there is no data, or a file is broken.
        EvaluationError: features or settings do not fit the pipeline.
        NonFiniteLatents: one of the pipelines samples latents that are not finite.
    """
    is_chosen = metrics is not METRICS
    if not is_chosen and find_spec("torchmetrics") is None:
        logger.info('no SSIM, which needs torchmetrics: pip install "ld-pruner[evaluation]"')
        metrics = tuple(name for name in METRICS if name != "ssim")
    if batch_size is not None:
        check_count("batch_size", batch_size, EvaluationError)
    probe = (probe or Probe()).completed(reference)
    _check(reference, probe, data, features, clip, metrics)
    folder = find_media(data) if data is not None else None
    clip_score = find_clip_score(clip, reference.device) if clip is not None else None
    observer = _Observer(find_extractor(features, reference.device), clip_score, frozenset(metrics))
    seeds = [probe.replace(seed=probe.seed + shift) for shift in (1, 2)]
    size = batch_size or (DECODED_BATCH_SIZE if observer.decodes else BATCH_SIZE)
    size = largest_batch(reference, seeds[0], size)
    observations, example = _observed(pruned, reference, seeds, observer, size, progress)
    real = _features_of(folder, example, observer.extractor) if folder else observations[1]["features"]
    pair = {"original": reference, "pruned": pruned}
    is_timed = bool(set(COSTS) & set(metrics))
    comparison = compare(pair, probe, component=component, progress=progress) if is_timed else None
    measures = {measure.metric: measure for measure in _measures(observations, real, observer, comparison)}
    if missing := [name for name in metrics if is_chosen and name not in measures]:
        logger.warning("these do not apply to %s: %s", type(reference).__name__, ", ".join(missing))
    settings = {"features": observer.extractor.name, "clip": clip, "batch_size": size, "decoded": observer.decodes}
    return Evaluation(
        metrics=tuple(measures[name] for name in METRICS if name in metrics and name in measures),
        protocol=settings | _protocol(reference, seeds, folder, len(real), comparison),
    )


def _check(
    reference: DiffusionPipeline,
    probe: Probe,
    data: Path | str | None,
    features: Features,
    clip: str | None,
    metrics: Collection[str],
) -> None:
    """Raises EvaluationError for settings that do not fit, before anything is sampled."""
    if isinstance(metrics, str) or not metrics:
        raise EvaluationError(f"metrics={metrics!r}: give a list of them; accepted: {', '.join(METRICS)}")
    probe.check(reference)
    for name in metrics:
        check_choice("metric", name, METRICS, EvaluationError)
    if probe.samples < MIN_SAMPLES:
        raise EvaluationError(f"{probe.samples} samples are too few to compare; give the probe at least {MIN_SAMPLES}")
    if data is not None and features == "latents":
        raise EvaluationError(
            f"files such as those of {str(data)!r} have no latents; choose features: inception, a folder or a Hub id"
        )
    if clip is not None and "prompt" not in probe.arguments(reference, [0]):
        raise EvaluationError(f"{type(reference).__name__} takes no prompts; leave out clip={clip!r}")


@dataclass(frozen=True)
class _Observer:
    """Reduces a batch of samples to what the metrics need, so that no picture is kept."""

    extractor: Extractor
    clip_score: ClipScore | None
    metrics: frozenset[str]

    @property
    def decodes(self) -> bool:
        """Whether it needs more than latents."""
        needs_pictures = PICTURE_METRICS.keys() | ({"clip_score"} if self.clip_score is not None else set())
        return bool(self.metrics & needs_pictures) or not isinstance(self.extractor, LatentFeatures)

    def __call__(self, batch: SampleBatch, original: SampleBatch) -> Observations:
        """Observes a batch, and compares it with the original's samples on the same seeds."""
        assert batch.latents is not None
        assert original.latents is not None
        distance = latent_distance(batch.latents, original.latents)
        observations: dict[str, NDArray[Any]] = {"features": self.extractor(batch), "latent_distance": distance}
        if "latent_shift" in self.metrics:
            observations["latents"] = batch.latents.astype(np.float32)  # the largest part of what is kept
        if self.clip_score is not None and "clip_score" in self.metrics:
            observations["clip_score"] = self.clip_score(batch)
        if batch.pictures is None or original.pictures is None:
            return observations
        for name, metric in PICTURE_METRICS.items():
            if name in self.metrics and (name != "ssim" or min(batch.pictures.shape[2:4]) >= SSIM_WINDOW):
                observations[name] = metric(batch.pictures, original.pictures)
        return observations


def _observed(
    pruned: DiffusionPipeline,
    reference: DiffusionPipeline,
    seeds: Sequence[Probe],
    observer: _Observer,
    size: int,
    progress: Progress,
) -> tuple[list[Observations], SampleBatch]:
    """Observes the original, the original on other seeds, and the pruned pipeline; also returns one batch."""
    observed: list[list[Observations]] = [[], [], []]
    runs = ((reference, seeds[0]), (reference, seeds[1]), (pruned, seeds[0]))
    indices = range(seeds[0].samples)
    for part in progress(list(parts(len(indices), size)), "sampling"):
        batches = [sample_batch(pipeline, probe, indices[part], decoded=observer.decodes) for pipeline, probe in runs]
        _check_latents([batch.latents for batch in batches], type(reference).__name__)
        for batch, observations in zip(batches, observed, strict=True):
            observations.append(observer(batch, batches[0]))
    joined = [{name: np.concatenate([part[name] for part in run]) for name in run[0]} for run in observed]
    if not all(np.isfinite(run["features"]).all() for run in joined):
        raise EvaluationError("the feature network returns values that are not finite; choose other features")
    return list(joined), batches[0]


def _check_latents(latents: Sequence[Any], pipeline: str) -> None:
    original, *_, pruned = latents
    if original.shape != pruned.shape:
        raise EvaluationError(
            f"the original samples latents {original.shape}, the other pipeline {pruned.shape}; "
            "give a pipeline and what was pruned of it"
        )
    if not all(np.isfinite(array).all() for array in latents):
        raise NonFiniteLatents(f"{pipeline} samples latents that are not finite; prune less of it")


def _features_of(folder: Folder, example: SampleBatch, extractor: Extractor) -> Floats:
    """The features of the files of a folder, read a few at a time."""
    files = folder.files
    if len(files) < MIN_SAMPLES:
        raise EvaluationError(
            f"{folder.path} holds {len(files)} files, too few to compare; give at least {MIN_SAMPLES}"
        )
    batches = (read_samples(files[part], example) for part in parts(len(files), DECODED_BATCH_SIZE))
    return np.concatenate(list(map(extractor, batches)))


def _measures(
    observations: Sequence[Observations], real: Floats, observer: _Observer, comparison: Comparison | None
) -> Iterator[Measure]:
    """All measures, from observations of the original, the original on other seeds, and the pruned pipeline."""
    original, other, pruned = observations
    if comparison is not None:
        yield from _costs(comparison)
    for name, metric in SET_METRICS.items():
        if name in observer.metrics:
            value, floor = metric(original["features"], real), metric(original["features"], other["features"])
            yield _measure(name, value, metric(pruned["features"], real), floor)
    if isinstance(observer.extractor, Classifier) and "inception_score" in observer.metrics:
        classes = [observer.extractor.probabilities(run["features"]) for run in observations]
        value, floor, ours = map(inception_score, classes)
        yield _measure("inception_score", value, ours, floor)
    for name in ("clip_score", *PAIRED):
        if name in pruned:
            value, floor, ours = (mean(run[name]) for run in observations)
            yield _measure(name, None if name in PAIRED else value, ours, floor)
    if "latents" in pruned:
        floor, ours = (shift_of_latents(run["latents"], original["latents"]) for run in (other, pruned))
        yield _measure("latent_shift", None, ours, floor)


def _measure(metric: str, original: Statistic | None, pruned: Statistic, floor: Statistic) -> Measure:
    return Measure(
        metric=metric,
        original=original.value if original is not None else None,
        pruned=pruned.value,
        interval=pruned.interval,
        interval_type="confidence",
        noise_floor=floor.value,
    )


def _costs(comparison: Comparison) -> Iterator[Measure]:
    original, pruned = comparison.pipelines
    assert comparison.latency_ratio is not None
    timings = ((original.latency_ms.median, pruned.latency_ms), (1.0, comparison.latency_ratio))
    for name, (value, times) in zip(COSTS, timings, strict=False):
        interval = times.p10, times.p90
        yield Measure(metric=name, original=value, pruned=times.median, interval=interval, interval_type="percentiles")
    for name in COSTS[len(timings) :]:
        yield Measure(metric=name, original=getattr(original, name), pruned=getattr(pruned, name))


def _protocol(
    reference: DiffusionPipeline,
    seeds: Sequence[Probe],
    folder: Folder | None,
    real_samples: int,
    comparison: Comparison | None,
) -> dict[str, Any]:
    """What else is needed to measure the same numbers again."""
    return {
        "probe": seeds[0].model_dump(mode="json"),
        "seeds": {"samples": seeds[0].seed, "noise_floor": seeds[1].seed},
        "samples": seeds[0].samples,
        "reference": {
            "samples": real_samples,
            "folder": str(folder.path) if folder else None,
            "digest": folder.digest if folder else None,
        },
        "latency": comparison
        and {"rounds": comparison.rounds, "samples": 1, "interval": "10 % to 90 % of the rounds"},
        "bootstrap": {
            "resamples": RESAMPLES,
            "confidence": CONFIDENCE,
            "seed": 0,
            "interval": "percentiles, corrected for bias; the reference is not resampled, except for recall",
        },
        "pipeline": type(reference).__name__,
        "device": str(reference.device),
        "precision": str(reference.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in PACKAGES if name != "torchmetrics" or find_spec(name)},
    }
