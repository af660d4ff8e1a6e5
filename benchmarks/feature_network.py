"""Quality of a pipeline's pictures, in the features of a network trained on the model's training split."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from benchmarks.comparison import STEPS
from benchmarks.models import Model
from ldpruner.evaluation.metrics import cosine_distance, frechet_distance, mean
from ldpruner.scoring.importance import Floats
from zoo.features import features_of
from zoo.quality import reconstructions

STRIP = 12  # pictures of a strip


def measured_quality(
    model: Model, pipeline: DiffusionPipeline, pictures: int, steps: int, seed: int, strip: Path | None = None
) -> dict[str, Any]:
    """The Frechet distance to the test images, and how well pictures of training captions show them.

    A Frechet distance compares distributions: it does not see whether a picture shows its caption. *R@1* and *R@5* are
    shares of pictures whose caption matches best, or is among the five that match best, of 256. The *paired distance*
    is that to the original's picture of the same caption and seed. All have 95 % intervals. The first pictures of
    training captions go into the file `strip`.
    """
    quality = quality_of(model, model.sample(pipeline, pictures, steps, seed))
    if model.train_captions is not None:
        shown = model.sample_captions(pipeline, steps, seed)
        quality |= _adherence(model, shown, _originals(model, seed))
        if strip is not None:
            strip.parent.mkdir(exist_ok=True)
            Image.fromarray(torch.cat(list(shown[:STRIP]), 2).permute(1, 2, 0).numpy()).save(strip)
    return quality


def quality_of(model: Model, pixels: torch.Tensor) -> dict[str, Any]:
    """The Frechet distance of pictures, bytes [pictures, channels, height, width], to the test images."""
    return distance_between(features_in(model, pixels), features_in(model, model.test))


def _adherence(model: Model, pixels: torch.Tensor, originals: torch.Tensor) -> dict[str, Any]:
    ranks = model.ranks(pixels)
    metrics = {
        "r_at_1": mean((ranks < 1).astype(float)),
        "r_at_5": mean((ranks < 5).astype(float)),
        "paired_distance": mean(cosine_distance(features_in(model, pixels), features_in(model, originals))),
    }
    return {
        name: value
        for key, metric in metrics.items()
        for name, value in ((key, metric.value), (f"{key}_interval", metric.interval))
    }


@functools.lru_cache
def _originals(model: Model, seed: int) -> torch.Tensor:
    """The original's pictures of training captions, which all methods are compared with."""
    return model.sample_captions(model.pipeline, STEPS, seed)


def autoencoder_bound(model: Model, pictures: int, seed: int) -> dict[str, Any]:
    """The distance of training images that went through the autoencoder: a bound for every denoiser."""
    order = torch.randperm(len(model.train), generator=torch.Generator().manual_seed(seed))
    rebuilt = reconstructions(model.autoencoder, model.train.pixels[order[:pictures]])
    return distance_between(features_in(model, rebuilt), features_in(model, model.test))


def features_in(model: Model, pixels: torch.Tensor) -> Floats:
    """The features of pictures, [pictures, features]."""
    network = model.feature_network
    return np.asarray(features_of(network, pixels[:, : network.channels]).double().numpy())


def distance_between(features: Floats, real: Floats) -> dict[str, Any]:
    """The Frechet distance of two sets of features, with its interval."""
    distance = frechet_distance(features, real)
    return {"frechet_distance": distance.value, "interval": distance.interval}
