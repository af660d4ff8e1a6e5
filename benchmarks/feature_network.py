"""Quality of a pipeline's pictures, in the features of a network trained on the model's training split."""

from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from benchmarks.models import Model
from ldpruner.evaluation.metrics import frechet_distance, mean
from ldpruner.scoring.importance import Floats
from zoo.features import features_of
from zoo.quality import reconstructions


def measured_quality(
    model: Model, pipeline: DiffusionPipeline, pictures: int, steps: int, seed: int
) -> dict[str, Any]:
    """The Frechet distance to the test images with its interval, and R@5 of a model that reads captions.

    A Frechet distance compares distributions: it does not see whether a picture shows its caption.
    """
    return quality_of(model, model.sample(pipeline, pictures, steps, seed))


def quality_of(model: Model, pixels: torch.Tensor) -> dict[str, Any]:
    """The same of pictures, bytes [pictures, channels, height, width]."""
    quality: dict[str, Any] = distance_between(features_in(model, pixels), features_in(model, model.test))
    is_retrieved = model.retrieved(pixels)
    if is_retrieved is not None:
        r_at_5 = mean(is_retrieved)
        quality |= {"r_at_5": r_at_5.value, "r_at_5_interval": r_at_5.interval}
    return quality


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
