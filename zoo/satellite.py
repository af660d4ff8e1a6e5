"""The settings of `zoo:satellite`: unconditional satellite photographs, 64x64, trained on EuroSAT."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, LDMPipeline

from zoo.card import write_card, write_notice, write_samples
from zoo.classifier import verdicts
from zoo.data import read_images, turned
from zoo.drawing import draw, halved
from zoo.judge import write_judge
from zoo.quality import Shown, reconstructions
from zoo.recipe import Recipe
from zoo.report import report
from zoo.stages import (
    latents_of,
    refine_denoiser,
    rescale_,
    train_autoencoder,
    train_classifier,
    train_denoiser,
    train_perception,
)
from zoo.training import Schedule

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from diffusers import AutoencoderKL, UNet2DModel
    from torch import Tensor

    from zoo.classifier import Classifier
    from zoo.data import Images
    from zoo.training import Trained

SATELLITE = Recipe(
    name="satellite",
    seed=0,
    autoencoder={
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (16, 32, 64, 64),
        "layers_per_block": 1,
        "latent_channels": 8,
        # Few groups: normalised two channels at a time, the 16 of full resolution forget the colour.
        "norm_num_groups": 2,
        "sample_size": 64,
    },
    perception_schedule=Schedule(
        steps=2000, batch=64, rate=2e-3, warmup=100, weight_decay=0.05, checkpoint_every=1000, seed=4
    ),
    autoencoder_schedule=Schedule(
        steps=5000, batch=32, rate=1e-3, warmup=200, weight_decay=1e-4, checkpoint_every=1000, seed=1
    ),
    divergence=1e-6,
    detail=0.25,
    texture=0.15,
    likeness=0.2,
    denoiser={
        "sample_size": 8,
        "in_channels": 8,
        "out_channels": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (64, 128, 160),
        "layers_per_block": 2,
        "attention_head_dim": 32,
        "norm_num_groups": 32,
    },
    denoiser_schedule=Schedule(steps=5000, batch=256, rate=1e-3, warmup=200, checkpoint_every=1000, seed=2),
    refinement_schedule=Schedule(steps=3000, batch=256, rate=6e-4, warmup=100, checkpoint_every=1000, seed=5),
    scheduler={
        "num_train_timesteps": 1000,
        "beta_start": 0.0015,
        "beta_end": 0.0195,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    },
    judge_schedule=Schedule(steps=700, batch=64, rate=2e-3, warmup=100, weight_decay=0.05, seed=3),
    sampling_steps=25,
    samples=2400,
)


def make_satellite(recipe: Recipe, data: Path, out: Path) -> None:
    """Every stage in turn, the pipeline, and its card."""
    images, test = read_images(data / "train.zip"), read_images(data / "test.zip")
    perception, first = train_perception(recipe, images, turned, out)
    autoencoder, second = train_autoencoder(recipe, images.pixels, turned, out, perception)
    latents = latents_of(recipe, autoencoder, views_of(images.pixels), out)
    latents = rescale_(autoencoder, latents)
    denoiser, third = train_denoiser(recipe, latents, out)
    denoiser, fourth = refine_denoiser(recipe, denoiser, latents, out)
    export(recipe, autoencoder, denoiser, out / "pipeline")
    judge, fifth = train_classifier(recipe, images, turned, out)
    stages = {"perception": first, "autoencoder": second, "denoiser": third, "refinement": fourth, "judge": fifth}
    describe(recipe, stages, judge, images, test, out)


def export(recipe: Recipe, autoencoder: AutoencoderKL, denoiser: UNet2DModel, folder: Path) -> None:
    """Write the pipeline folder, weights in half precision."""
    scheduler = DDIMScheduler(**recipe.scheduler)
    LDMPipeline(halved(autoencoder), halved(denoiser), scheduler).save_pretrained(folder)
    write_notice(recipe.name, folder)


def describe(
    recipe: Recipe, stages: Mapping[str, Trained], judge: Classifier, train: Images, test: Images, out: Path
) -> None:
    """The card, its numbers measured on the pipeline folder that ships."""
    pipeline = DiffusionPipeline.from_pretrained(out / "pipeline").to(recipe.device)
    samples = draw(pipeline, recipe.samples, recipe.sampling_steps)
    shown = Shown(train.pixels, test.pixels, reconstructions(pipeline.vqvae, test.pixels), samples)
    said = verdicts(judge, shown, train, test)
    write_judge(judge, out / "card")
    write_card(report(recipe, stages, out / "pipeline", judge, shown) | {"judge": said}, out / "card")
    write_samples(samples, out / "card" / "samples.png")


def views_of(pixels: Tensor) -> Tensor:
    """Every image as it is, turned and mirrored: the eight symmetries, [8 x samples, channels, height, width]."""
    turns = [pixels.rot90(quarters, (-2, -1)) for quarters in range(4)]
    return torch.cat([*turns, *(it.flip(-1) for it in turns)])
