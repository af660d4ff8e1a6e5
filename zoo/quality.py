"""How good a zoo model is: the Frechet distance of its samples to test images, beside yardsticks of the same code."""

from __future__ import annotations

import logging
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from zoo.autoencoder import decode, encode
from zoo.data import to_pixels, to_signal
from zoo.denoiser import sample
from zoo.judge import classify

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zoo.data import Images
    from zoo.judge import Judge
    from zoo.recipe import Recipe
    from zoo.training import Trained

logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "diffusers", "torchmetrics", "safetensors", "numpy", "pillow")


@dataclass(frozen=True)
class Account:
    """What was trained: the recipe, and the record of each stage by name."""

    recipe: Recipe
    stages: Mapping[str, Trained]


class _Features(nn.Module):
    """The judge as torchmetrics wants it: bytes in, features out."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge, self.num_features = judge, judge.num_features

    def forward(self, pixels: Tensor) -> Tensor:
        return self.judge.features(to_signal(pixels))


def frechet_distance(judge: Judge, real: Tensor, other: Tensor) -> float:
    """Frechet distance of two sets of images, bytes, in the features of `judge`.

    Source: Heusel et al. 2017, equation 6.
    """
    metric = FrechetInceptionDistance(feature=_Features(judge))
    for pixels, is_real in ((real, True), (other, False)):
        for part in pixels.split(500):
            metric.update(part, real=is_real)
    return float(metric.compute())


def measure(
    account: Account, pipeline: Path, judge: Judge, train: Images, test: Images
) -> tuple[dict[str, Any], Tensor]:
    """Every number of the model card, measured on the pipeline folder that ships, and the samples behind them."""
    recipe = account.recipe
    logger.info("drawing %d samples of %d steps", recipe.samples, recipe.sampling_steps)
    samples = sample(pipeline, recipe.samples, recipe.sampling_steps)
    rebuilt = reconstructions(pipeline, test.pixels)
    results: dict[str, Any] = {
        "model": recipe.name,
        "recipe": asdict(recipe),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
        "machine": machine(),
        "images": {"train": len(train), "test": len(test)},
        "pipeline": anatomy(pipeline),
        "stages": {name: _history(trained) for name, trained in account.stages.items()},
        "autoencoder": {"peak_signal_to_noise_db": _signal_to_noise(test.pixels, rebuilt)},
        "judge": _verdicts(judge, samples, rebuilt, train, test),
        "frechet_distance": _distances(judge, samples, rebuilt, train, test, recipe.seed),
    }
    return results, samples


def _distances(
    judge: Judge, samples: Tensor, rebuilt: Tensor, train: Images, test: Images, seed: int
) -> list[dict[str, Any]]:
    rows = yardsticks(train, test, seed) | {"samples": samples, "reconstructions": rebuilt}
    return [
        {"images": name, "count": len(rows[name]), "distance": frechet_distance(judge, test.pixels, rows[name])}
        for name in ("train", "reconstructions", "samples", "colours", "noise")
    ]


def yardsticks(train: Images, test: Images, seed: int) -> dict[str, Tensor]:
    """Sets of images, as many as test images, that a model should come near to or stay away from.

    `train`: real training images, drawn at random. `colours`: each test image as one flat colour, its mean.
    `noise`: independent uniform bytes.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(train), generator=generator)[: len(test)]
    flat = test.pixels.float().mean((2, 3), keepdim=True).round().to(torch.uint8)
    noise = torch.randint(0, 256, test.pixels.shape, generator=generator, dtype=torch.uint8)
    return {"train": train.pixels[chosen], "colours": flat.expand_as(test.pixels), "noise": noise}


def reconstructions(pipeline: Path, pixels: Tensor) -> Tensor:
    """Images, bytes, through the autoencoder of a pipeline folder and back."""
    autoencoder = DiffusionPipeline.from_pretrained(pipeline).vqvae
    return to_pixels(decode(autoencoder, encode(autoencoder, pixels)))


def _signal_to_noise(real: Tensor, rebuilt: Tensor) -> float:
    """Mean over images of the peak signal-to-noise ratio, in decibels."""
    error = (real.float() - rebuilt.float()).square().mean((1, 2, 3)).clamp(min=1e-2)
    return float((10 * torch.log10(255**2 / error)).mean())


def _verdicts(judge: Judge, samples: Tensor, rebuilt: Tensor, train: Images, test: Images) -> dict[str, Any]:
    seen, real = classify(judge, samples), classify(judge, test.pixels)
    votes = seen.argmax(1).bincount(minlength=len(judge.classes)) / len(samples)
    return {
        "parameters": sum(parameter.numel() for parameter in judge.parameters()),
        "features": judge.num_features,
        "train_accuracy": _accuracy(classify(judge, train.pixels), train.labels),
        "test_accuracy": _accuracy(real, test.labels),
        "reconstruction_accuracy": _accuracy(classify(judge, rebuilt), test.labels),
        "test_confidence": float(real.amax(1).mean()),
        "sample_confidence": float(seen.amax(1).mean()),
        "sample_classes": dict(zip(judge.classes, votes.tolist(), strict=True)),
    }


def _accuracy(probabilities: Tensor, labels: Tensor) -> float:
    return float((probabilities.argmax(1) == labels).float().mean())


def anatomy(pipeline: Path) -> dict[str, Any]:
    """Parameters of each network of a pipeline folder, its size in bytes, and the scale of its latents."""
    opened = DiffusionPipeline.from_pretrained(pipeline)
    networks = {name: part for name, part in opened.components.items() if isinstance(part, nn.Module)}
    return {
        "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in networks.items()},
        "bytes": sum(path.stat().st_size for path in pipeline.rglob("*") if path.is_file()),
        "scaling_factor": opened.vqvae.config.scaling_factor,
    }


def machine() -> dict[str, Any]:
    """The processor's name and how many cores this process may use."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {"processor": names[0] if names else platform.processor(), "cores": os.cpu_count()}


def _history(trained: Trained) -> dict[str, Any]:
    """Steps and wall time of a stage, and its loss averaged over each 50 steps."""
    losses = torch.tensor(trained.losses)
    means = [round(float(part.mean()), 5) for part in losses.split(50)]
    return {"steps": len(losses), "minutes": round(trained.seconds / 60, 1), "loss_per_50_steps": means}
