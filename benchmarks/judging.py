"""How good a pipeline's pictures are, by the judge of its model."""

from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from benchmarks.subjects import Subject
from ldpruner.evaluation.metrics import frechet_interval, mean_interval
from ldpruner.scoring.importance import Floats, frechet_distance
from zoo.eye import features_of
from zoo.quality import reconstructions


def judged(subject: Subject, pipeline: DiffusionPipeline, pictures: int, steps: int, seed: int) -> dict[str, Any]:
    """The judge's Frechet distance to the test images, and its interval by resampling; how captions are followed.

    A distance of distributions alone does not see whether a picture shows what was asked for.
    """
    pixels = subject.drawn(pipeline, pictures, steps, seed)
    found: dict[str, Any] = _distances(_features(subject, pixels), _features(subject, subject.test))
    recalled = subject.recalled(pixels)
    if recalled is not None:
        found |= {"recall": float(recalled.mean()), "recall_interval": mean_interval(recalled)}
    return found


def perfect(subject: Subject, pictures: int, seed: int) -> dict[str, Any]:
    """As `judged`, of what a perfect denoiser would draw: training images as the autoencoder gives them back."""
    order = torch.randperm(len(subject.train), generator=torch.Generator().manual_seed(seed))
    rebuilt = reconstructions(subject.autoencoder, subject.train.pixels[order[:pictures]])
    return _distances(_features(subject, rebuilt), _features(subject, subject.test))


def _features(subject: Subject, pixels: torch.Tensor) -> Floats:
    judge = subject.judge
    return np.asarray(features_of(judge, pixels[:, : judge.channels]).double().numpy())


def _distances(features: Floats, real: Floats) -> dict[str, Any]:
    return {"frechet_distance": frechet_distance(features, real), "interval": frechet_interval(features, real)}
