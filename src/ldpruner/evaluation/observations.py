"""Looking at samples of the original and the pruned pipeline while they are there, so that no picture need be kept."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from diffusers import DiffusionPipeline
from numpy.typing import NDArray

from ldpruner.errors import EvaluationError
from ldpruner.evaluation import metrics as quality
from ldpruner.evaluation.drawn import SampleBatch, draw
from ldpruner.evaluation.features import ClipScore, Extractor, LatentFeatures
from ldpruner.pipelines.probe import Probe

PICTURED = ("psnr", "ssim")  # of a picture and its original
PAIRED = ("latent_distance", *PICTURED)

Observations: TypeAlias = Mapping[str, NDArray[Any]]  # of each sample, by what was looked at


@dataclass(frozen=True)
class Observer:
    """What samples are looked at for: features, how they fit their prompts, how like the original's they are."""

    extractor: Extractor
    match: ClipScore | None
    metrics: frozenset[str]

    @property
    def decodes(self) -> bool:
        """Whether it looks at more than latents."""
        needing = {*PICTURED, "clip_score"} if self.match is not None else {*PICTURED}
        return bool(self.metrics & needing) or not isinstance(self.extractor, LatentFeatures)

    def __call__(self, drawn: SampleBatch, original: SampleBatch) -> Observations:
        """All of some samples, and of those of the original that they are compared with."""
        assert drawn.latents is not None
        assert original.latents is not None
        found: dict[str, NDArray[Any]] = {"features": self.extractor(drawn)}
        if "latent_score" in self.metrics:
            found["latents"] = drawn.latents.astype(np.float32)  # the most of all that is kept
        if "latent_distance" in self.metrics:
            found["latent_distance"] = quality.latent_distance(drawn.latents, original.latents)
        if self.match is not None and "clip_score" in self.metrics:
            found["clip_score"] = self.match(drawn)
        if drawn.pictures is None or original.pictures is None:
            return found
        pair = drawn.pictures, original.pictures
        if "psnr" in self.metrics:
            found["psnr"] = quality.psnr(*pair)
        if "ssim" in self.metrics and min(pair[0].shape[2:4]) >= quality.WINDOW:
            found["ssim"] = quality.ssim(*pair)
        return found


def observed(
    pruned: DiffusionPipeline,
    reference: DiffusionPipeline,
    seeds: tuple[Probe, Probe],
    observer: Observer,
    batch: int,
) -> tuple[Observations, Observations, Observations, SampleBatch]:
    """What is seen of the original, of the original on other seeds and of the pruned pipeline; and one batch drawn."""
    seen: tuple[list[Observations], ...] = ([], [], [])
    runs = ((reference, seeds[0]), (reference, seeds[1]), (pruned, seeds[0]))
    for indices in batches(range(seeds[0].samples), batch):
        drawn = [draw(pipeline, probe, indices, decoded=observer.decodes) for pipeline, probe in runs]
        _check_alike(drawn[0], drawn[2])
        for one, kept in zip(drawn, seen, strict=True):
            kept.append(observer(one, drawn[0]))
    original, other, moved = (_joined(one) for one in seen)
    return original, other, moved, drawn[0]


def batches(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (items[first : first + size] for first in range(0, len(items), size))


def _joined(parts: Sequence[Observations]) -> Observations:
    """The observations of all batches, as long as what a network gives are numbers."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if not np.isfinite(joined["features"]).all():
        raise EvaluationError("the feature network gives what is not finite; choose other features")
    return joined


def _check_alike(original: SampleBatch, pruned: SampleBatch) -> None:
    shapes = [None if one is None else one.shape for one in (original.latents, pruned.latents)]
    if shapes[0] != shapes[1]:
        raise EvaluationError(
            f"the original draws latents {shapes[0]}, the other pipeline {shapes[1]}; "
            "give a pipeline and what was pruned of it"
        )
