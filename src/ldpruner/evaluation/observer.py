"""Samples both pipelines batch by batch, and keeps of each sample what the metrics need; no picture is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from numpy.typing import NDArray

from ldpruner.errors import EvaluationError, NonFiniteLatents
from ldpruner.evaluation.features import Clip, Extractor, LatentFeatures, Lpips
from ldpruner.evaluation.measures import MIN_SAMPLES, Observations
from ldpruner.evaluation.media import Folder
from ldpruner.evaluation.metrics import PICTURE_METRICS, SSIM_WINDOW, cosine_distance, latent_distance, parts
from ldpruner.evaluation.samples import SampleBatch, read_samples, sample_batch
from ldpruner.evaluation.scorers import Scorer
from ldpruner.pipelines.probe import Probe
from ldpruner.progress import Progress

DECODED_BATCH_SIZE = 8  # decoding takes more memory than denoising


@dataclass(frozen=True)
class Observer:
    """What looks at samples.

    Attributes:
        features: in which all samples are compared.
        metrics: which are measured.
        clip: for the CLIP score and CMMD; None without.
        dino: the features of the DINO distance; None without.
        lpips: the distance of pictures; None without.
        scorers: those of the user.
    """

    features: Extractor
    metrics: frozenset[str]
    clip: Clip | None = None
    dino: Extractor | None = None
    lpips: Lpips | None = None
    scorers: tuple[Scorer, ...] = ()

    @property
    def decodes(self) -> bool:
        """Whether it needs more than latents."""
        has_networks = any(part is not None for part in (self.clip, self.dino, self.lpips))
        needs_pictures = has_networks or bool(self.scorers) or bool(self.metrics & PICTURE_METRICS.keys())
        return needs_pictures or not isinstance(self.features, LatentFeatures)

    def __call__(self, batches: Sequence[SampleBatch]) -> list[Observations]:
        """Observes batches, and compares each with the first: the original's samples on the same seeds."""
        alone = [self._alone(batch) for batch in batches]
        return [
            {**observations, **self._beside(batch, batches[0], observations, alone[0])}
            for batch, observations in zip(batches, alone, strict=True)
        ]

    def embedded(self, batch: SampleBatch) -> Observations:
        """The features in which sets of samples are compared."""
        features = {"features": self.features(batch)}
        return features | {"clip": self.clip(batch)} if self.clip is not None else features

    def _alone(self, batch: SampleBatch) -> dict[str, NDArray[Any]]:
        assert batch.latents is not None
        observations = dict(self.embedded(batch))
        if "latent_shift" in self.metrics:
            observations["latents"] = batch.latents.astype(np.float32)  # the largest part of what is kept
        if self.clip is not None and batch.prompts and "clip_score" in self.metrics:
            observations["clip_score"] = self.clip.score(observations["clip"], batch.prompts)
        if self.dino is not None:
            observations["dino"] = self.dino(batch)
        return observations | {scorer.name: scorer(batch) for scorer in self.scorers}

    def _beside(
        self, batch: SampleBatch, original: SampleBatch, own: Observations, originals: Observations
    ) -> dict[str, NDArray[Any]]:
        assert batch.latents is not None
        assert original.latents is not None
        distances = {"latent_distance": latent_distance(batch.latents, original.latents)}
        if "dino" in own:
            distances["dino_distance"] = cosine_distance(own["dino"], originals["dino"])
        if batch.pictures is None or original.pictures is None:
            return distances
        compared = {**PICTURE_METRICS, "lpips": self.lpips}
        for name, metric in compared.items():
            if metric is None:
                continue
            if name in self.metrics and (name != "ssim" or min(batch.pictures.shape[2:4]) >= SSIM_WINDOW):
                distances[name] = metric(batch.pictures, original.pictures)
        return distances


def observe(
    runs: Sequence[tuple[DiffusionPipeline, Probe]], observer: Observer, size: int, progress: Progress
) -> tuple[list[Observations], SampleBatch]:
    """Observes the original, the original on other seeds, and the pruned pipeline; also returns one batch.

    Args:
        runs: these pipelines, each with its probe.
        size: samples at once.

    Raises:
        EvaluationError: the pipelines' latents differ in shape, or features are not finite.
        NonFiniteLatents: one of the pipelines samples latents that are not finite.
    """
    observed: list[list[Observations]] = [[], [], []]
    (reference, probe), *_ = runs
    indices = range(probe.samples)
    for part in progress(list(parts(len(indices), size)), "sampling"):
        batches = [sample_batch(pipeline, probe, indices[part], decoded=observer.decodes) for pipeline, probe in runs]
        _check_latents([batch.latents for batch in batches], type(reference).__name__)
        for run, observations in zip(observed, observer(batches), strict=True):
            run.append(observations)
    joined = list(map(_joined, observed))
    if not all(np.isfinite(run["features"]).all() for run in joined):
        raise EvaluationError("the feature network returns values that are not finite; choose other features")
    return joined, batches[0]


def _check_latents(latents: Sequence[Any], pipeline: str) -> None:
    original, *_, pruned = latents
    if original.shape != pruned.shape:
        raise EvaluationError(
            f"the original samples latents {original.shape}, the other pipeline {pruned.shape}; "
            "give a pipeline and what was pruned of it"
        )
    if not all(np.isfinite(array).all() for array in latents):
        raise NonFiniteLatents(f"{pipeline} samples latents that are not finite; prune less of it")


def observe_files(folder: Folder, example: SampleBatch, observer: Observer) -> Observations:
    """The features of the files of a folder, read a few at a time.

    Args:
        example: samples whose size or sampling rate the files are brought to.

    Raises:
        DataError: a file is broken.
        EvaluationError: there are too few files, or of another kind than the samples.
    """
    files = folder.files
    if len(files) < MIN_SAMPLES:
        raise EvaluationError(
            f"{folder.path} holds {len(files)} files, too few to compare; give at least {MIN_SAMPLES}"
        )
    batches = (read_samples(files[part], example) for part in parts(len(files), DECODED_BATCH_SIZE))
    return _joined(list(map(observer.embedded, batches)))


def _joined(batches: Sequence[Observations]) -> Observations:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
