"""The settings of `zoo:satellite`: unconditional satellite photographs, 64x64, trained on EuroSAT."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, LDMPipeline

from ldpruner.finetuning import Training
from zoo.card import write_card, write_notice, write_samples
from zoo.classifier import classification_metrics
from zoo.data import read_images, turned
from zoo.feature_network import write_feature_network
from zoo.quality import ImageSets, reconstructions
from zoo.recipe import Recipe
from zoo.report import report
from zoo.sampling import in_half_precision, sample
from zoo.stages import (
    latents_of,
    refine_denoiser,
    rescale_,
    train_autoencoder,
    train_classifier,
    train_denoiser,
    train_perceptual_network,
)

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
        # Few groups: normalized two channels at a time, the 16 of full resolution lose the colour.
        "norm_num_groups": 2,
        "sample_size": 64,
    },
    perceptual_network_training=Training(
        max_train_steps=2000,
        train_batch_size=64,
        learning_rate=2e-3,
        lr_warmup_steps=100,
        adam_weight_decay=0.05,
        checkpointing_steps=1000,
        seed=4,
    ),
    autoencoder_training=Training(
        max_train_steps=5000,
        train_batch_size=32,
        learning_rate=1e-3,
        lr_warmup_steps=200,
        adam_weight_decay=1e-4,
        checkpointing_steps=1000,
        seed=1,
    ),
    kl_weight=1e-6,
    detail_weight=0.25,
    texture_weight=0.15,
    perceptual_weight=0.2,
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
    denoiser_training=Training(
        max_train_steps=5000,
        train_batch_size=256,
        learning_rate=1e-3,
        lr_warmup_steps=200,
        checkpointing_steps=1000,
        seed=2,
    ),
    refinement_training=Training(
        max_train_steps=3000,
        train_batch_size=256,
        learning_rate=6e-4,
        lr_warmup_steps=100,
        checkpointing_steps=1000,
        seed=5,
    ),
    scheduler={
        "num_train_timesteps": 1000,
        "beta_start": 0.0015,
        "beta_end": 0.0195,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    },
    feature_network_training=Training(
        max_train_steps=700,
        train_batch_size=64,
        learning_rate=2e-3,
        lr_warmup_steps=100,
        adam_weight_decay=0.05,
        seed=3,
        checkpointing_steps=250,
    ),
    sampling_steps=25,
    samples=2400,
)


def make_satellite(recipe: Recipe, data: Path, out: Path) -> None:
    """Every stage in turn, the pipeline, and its card."""
    images, test = read_images(data / "train.zip"), read_images(data / "test.zip")
    perceptual, first = train_perceptual_network(recipe, images, turned, out)
    autoencoder, second = train_autoencoder(recipe, images.pixels, turned, out, perceptual)
    latents = rescale_(autoencoder, latents_of(recipe, autoencoder, views_of(images.pixels), out))
    denoiser, third = train_denoiser(recipe, latents, out)
    denoiser, fourth = refine_denoiser(recipe, denoiser, latents, out)
    export(recipe, autoencoder, denoiser, out / "pipeline")
    classifier, fifth = train_classifier(recipe, images, turned, out)
    stages = {
        "perceptual_network": first,
        "autoencoder": second,
        "denoiser": third,
        "refinement": fourth,
        "feature_network": fifth,
    }
    describe(recipe, stages, classifier, images, test, out)


def export(recipe: Recipe, autoencoder: AutoencoderKL, denoiser: UNet2DModel, folder: Path) -> None:
    """Writes the pipeline folder, weights in half precision."""
    networks = in_half_precision(autoencoder), in_half_precision(denoiser)
    LDMPipeline(*networks, DDIMScheduler(**recipe.scheduler)).save_pretrained(folder)
    write_notice(recipe.name, folder)


def describe(
    recipe: Recipe, stages: Mapping[str, Trained], classifier: Classifier, train: Images, test: Images, out: Path
) -> None:
    """The card, its numbers measured on the pipeline folder that ships."""
    pipeline = DiffusionPipeline.from_pretrained(out / "pipeline").to(recipe.device)
    samples = sample(pipeline, recipe.samples, recipe.sampling_steps)
    sets = ImageSets(train.pixels, test.pixels, reconstructions(pipeline.vqvae, test.pixels), samples)
    metrics = classification_metrics(classifier, sets, train, test)
    write_feature_network(classifier, out / "card")
    results = report(recipe, stages, out / "pipeline", classifier, sets)
    write_card(results | {"feature_network": metrics}, out / "card")
    write_samples(samples, out / "card" / "samples.png")


def views_of(pixels: Tensor) -> Tensor:
    """The eight symmetries of every image: [8 x samples, channels, height, width]."""
    turns = [pixels.rot90(quarters, (-2, -1)) for quarters in range(4)]
    return torch.cat([*turns, *(images.flip(-1) for images in turns)])
