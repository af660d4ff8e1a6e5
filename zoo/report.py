"""The results that every card has: the training, the machine, and the pipeline folder."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from zoo.quality import distances, signal_to_noise
from zoo.sampling import autoencoder_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zoo.features import FeatureNetwork
    from zoo.quality import ImageSets
    from zoo.recipe import Recipe
    from zoo.training import Trained

LIBRARIES = ("torch", "diffusers", "transformers", "torchmetrics", "safetensors", "numpy", "pillow")


def report(
    recipe: Recipe, stages: Mapping[str, Trained], folder: Path, network: FeatureNetwork, sets: ImageSets
) -> dict[str, Any]:
    """The recipe, the record of each stage by name, the contents of the pipeline `folder`, and the image quality."""
    return {
        "model": recipe.name,
        "recipe": recipe.to_json(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
        "machine": machine(recipe.device),
        "images": {"train": len(sets.train), "test": len(sets.test)},
        "pipeline": anatomy(folder),
        "stages": {name: _history(trained) for name, trained in stages.items()},
        "autoencoder": {"peak_signal_to_noise_db": signal_to_noise(sets.test, sets.reconstructions)},
        "frechet_distance": distances(network, sets, recipe.seed),
    }


def anatomy(folder: Path) -> dict[str, Any]:
    """Parameters of each network of a pipeline folder, its size in bytes, and the scale of its latents."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    networks = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    return {
        "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in networks.items()},
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "scaling_factor": autoencoder_of(pipeline).config.scaling_factor,
    }


def machine(device: str) -> dict[str, Any]:
    """The names of the device and of the processor, and the number of cores."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor, cores = names[0] if names else platform.processor(), os.cpu_count()
    trainer = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{processor}, {cores} cores"
    return {"trainer": trainer, "processor": processor, "cores": cores}


def _history(trained: Trained) -> dict[str, Any]:
    """Steps and wall time of a stage, and its loss averaged over each 50 steps."""
    losses = torch.tensor(trained.losses)
    means = [round(float(part.mean()), 5) for part in losses.split(50)]
    return {"steps": len(losses), "minutes": round(trained.seconds / 60, 1), "loss_per_50_steps": means}
