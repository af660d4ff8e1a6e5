"""zoo:digits, one second of a spoken digit, trained on the Free Spoken Digit Dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import AudioDiffusionPipeline, DDIMScheduler, DiffusionPipeline

from ldpruner.finetuning import Training
from ldpruner.finetuning.state import read_tensors, write_tensors
from zoo.card import write_card, write_notice, write_samples
from zoo.classifier import classification_metrics, classify
from zoo.data import Images, unchanged
from zoo.feature_network import write_feature_network
from zoo.quality import ImageSets, nearest_training_distance, reconstructions
from zoo.recipe import V_PREDICTION, Recipe
from zoo.report import report
from zoo.sampling import in_half_precision, sample, without_sound
from zoo.sounds import build_mel, mel_pictures, placed, read_sounds, sounds_of, write_sounds
from zoo.stages import latents_of, rescale_, train_autoencoder, train_classifier, train_denoiser

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from diffusers import AutoencoderKL, UNet2DModel
    from torch import Tensor

    from zoo.classifier import Classifier
    from zoo.training import Trained

# places in a second of silence at which each recording is put
TEST_PLACES, TRAINING_PLACES = 4, 8

# samples that are turned to sound and back, and those that are written as sounds
AS_SOUND, WRITTEN = 100, 10

DIGITS = Recipe(
    name="digits",
    seed=0,
    autoencoder={
        "in_channels": 1,
        "out_channels": 1,
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (16, 48, 96),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 2,
        "sample_size": 64,
    },
    autoencoder_training=Training(
        max_train_steps=2500,
        train_batch_size=32,
        learning_rate=1e-3,
        lr_warmup_steps=100,
        adam_weight_decay=1e-4,
        checkpointing_steps=1000,
        seed=1,
    ),
    kl_weight=5e-6,
    detail_weight=0.5,
    texture_weight=0.15,
    denoiser={
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (48, 96, 160),
        "layers_per_block": 1,
        "attention_head_dim": 32,
        "norm_num_groups": 16,
    },
    denoiser_training=Training(
        max_train_steps=8000,
        train_batch_size=256,
        learning_rate=1e-3,
        lr_warmup_steps=200,
        ema_decay=0.9995,
        checkpointing_steps=2000,
        seed=2,
    ),
    scheduler=V_PREDICTION,
    feature_network_training=Training(
        max_train_steps=600,
        train_batch_size=64,
        learning_rate=2e-3,
        lr_warmup_steps=100,
        adam_weight_decay=0.05,
        seed=3,
        checkpointing_steps=250,
    ),
    sampling_steps=25,
    samples=600,
)


def make_digits(recipe: Recipe, data: Path, out: Path) -> None:
    """Every stage in turn, the pipeline, and its card."""
    images = cached_pictures(data / "train.zip", recipe, TRAINING_PLACES, out / "train.safetensors")
    test = cached_pictures(data / "test.zip", recipe, TEST_PLACES, out / "test.safetensors")
    autoencoder, first = train_autoencoder(recipe, images.pixels, unchanged, out)
    latents = rescale_(autoencoder, latents_of(recipe, autoencoder, images.pixels, out))
    denoiser, second = train_denoiser(recipe, latents, out)
    export(recipe, autoencoder, denoiser, out / "pipeline")
    classifier, third = train_classifier(recipe, images, unchanged, out)
    stages = {"autoencoder": first, "denoiser": second, "feature_network": third}
    describe(recipe, stages, classifier, images, test, out)


def export(recipe: Recipe, autoencoder: AutoencoderKL, denoiser: UNet2DModel, folder: Path) -> None:
    """Writes the pipeline folder, weights in half precision."""
    networks = in_half_precision(autoencoder), in_half_precision(denoiser)
    AudioDiffusionPipeline(*networks, build_mel(), DDIMScheduler(**recipe.scheduler)).save_pretrained(folder)
    write_notice(recipe.name, folder)


def describe(
    recipe: Recipe, stages: Mapping[str, Trained], classifier: Classifier, train: Images, test: Images, out: Path
) -> None:
    """The card, and the first samples as sounds."""
    pipeline = DiffusionPipeline.from_pretrained(out / "pipeline").to(recipe.device)
    samples = sample(without_sound(pipeline), recipe.samples, recipe.sampling_steps)
    sets = ImageSets(train.pixels, test.pixels, reconstructions(pipeline.vqvae, test.pixels), samples)
    metrics = classification_metrics(classifier, sets, train, test)
    metrics |= sound_metrics(classifier, samples[:AS_SOUND], test)
    for name, pixels in (("sample", samples), ("test", test.pixels)):
        metrics[f"{name}_nearest_training_distance"] = nearest_training_distance(pixels, train.pixels)
    write_feature_network(classifier, out / "card")
    write_notice(recipe.name, out / "card")
    results = report(recipe, stages, out / "pipeline", classifier, sets)
    write_card(results | {"feature_network": metrics}, out / "card")
    write_samples(samples, out / "card" / "samples.png")
    write_sounds(sounds_of(samples[:WRITTEN], build_mel()), out / "card")


def read_pictures(archive: Path, seed: int, places: int = TEST_PLACES) -> Images:
    """Mel pictures of the recordings in `archive`, each at several random places in silence."""
    sounds, mel, generator = read_sounds(archive), build_mel(), torch.Generator().manual_seed(seed)
    parts = [placed(sounds, mel, generator) for _ in range(places)]
    pixels, labels = (torch.cat([getattr(images, name) for images in parts]) for name in ("pixels", "labels"))
    return Images(pixels, labels, sounds.classes)


def cached_pictures(archive: Path, recipe: Recipe, places: int, path: Path) -> Images:
    """Mel pictures of the recordings in `archive`, made once and kept in `path`."""
    if not path.exists():
        images = read_pictures(archive, recipe.seed, places)
        write_tensors(path, {"pixels": images.pixels, "labels": images.labels}, {"classes": images.classes})
    tensors, metadata = read_tensors(path)
    return Images(tensors["pixels"], tensors["labels"], tuple(metadata["classes"]))


def sound_metrics(classifier: Classifier, samples: Tensor, test: Images) -> dict[str, Any]:
    """The classifier's confidence and agreement on pictures that were turned to sound and back."""
    mel = build_mel()
    chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[: len(samples)]
    before = classify(classifier, samples)
    after, real = (
        classify(classifier, mel_pictures(sounds_of(pixels, mel), mel)) for pixels in (samples, test.pixels[chosen])
    )
    return {
        "sounds": len(samples),
        "sample_confidence_as_sound": float(after.amax(1).mean()),
        "sample_agreement_as_sound": float((after.argmax(1) == before.argmax(1)).float().mean()),
        "test_confidence_as_sound": float(real.amax(1).mean()),
        "test_accuracy_as_sound": float((real.argmax(1) == test.labels[chosen]).float().mean()),
    }
