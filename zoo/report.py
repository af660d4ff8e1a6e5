"""What a card says of every model alike: how it was trained, on what machine, and what the folder holds."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from zoo.drawing import autoencoder_of
from zoo.quality import distances, signal_to_noise

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zoo.judge import Judge
    from zoo.quality import Shown
    from zoo.recipe import Recipe
    from zoo.training import Trained

LIBRARIES = ("torch", "diffusers", "transformers", "torchmetrics", "safetensors", "numpy", "pillow")


def report(recipe: Recipe, stages: Mapping[str, Trained], folder: Path, judge: Judge, shown: Shown) -> dict[str, Any]:
    """The recipe, the record of each stage by name, what the pipeline `folder` holds, and how good its images are."""
    return {
        "model": recipe.name,
        "recipe": asdict(recipe),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
        "machine": machine(recipe.device),
        "images": {"train": len(shown.train), "test": len(shown.test)},
        "pipeline": anatomy(folder),
        "stages": {name: _history(trained) for name, trained in stages.items()},
        "autoencoder": {"peak_signal_to_noise_db": signal_to_noise(shown.test, shown.rebuilt)},
        "frechet_distance": distances(judge, shown, recipe.seed),
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
    """What a device of this machine is called, and the processor, and how many cores this process may use."""
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
