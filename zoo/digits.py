"""zoo:digits, one second of a spoken digit, trained on the Free Spoken Digit Dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import AudioDiffusionPipeline, DDIMScheduler, DiffusionPipeline

from zoo.card import write_card, write_notice, write_samples
from zoo.checkpoints import read_checkpoint, write_checkpoint
from zoo.classifier import classify, verdicts
from zoo.data import Images, unchanged
from zoo.drawing import draw, halved, silent
from zoo.judge import write_judge
from zoo.quality import Shown, reconstructions, remoteness
from zoo.recipe import VELOCITY, Recipe
from zoo.report import report
from zoo.sounds import build_mel, pictures, placed, read_sounds, sounds_of, write_sounds
from zoo.stages import (
    latents_of,
    rescale_,
    train_autoencoder,
    train_classifier,
    train_denoiser,
)
from zoo.training import Schedule

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from diffusers import AutoencoderKL, UNet2DModel
    from torch import Tensor

    from zoo.classifier import Classifier
    from zoo.training import Trained

# each recording is placed this often in a second of silence; oftener where networks learn from it
PLACES, LEARNT = 4, 8

# samples that are heard and seen again, and those that are kept to listen to
HEARD, KEPT = 100, 10

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
    autoencoder_schedule=Schedule(
        steps=2500, batch=32, rate=1e-3, warmup=100, weight_decay=1e-4, checkpoint_every=1000, seed=1
    ),
    divergence=5e-6,
    detail=0.5,
    texture=0.15,
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
    denoiser_schedule=Schedule(
        steps=8000, batch=256, rate=1e-3, warmup=200, average=0.9995, checkpoint_every=2000, seed=2
    ),
    scheduler=VELOCITY,
    judge_schedule=Schedule(steps=600, batch=64, rate=2e-3, warmup=100, weight_decay=0.05, seed=3),
    sampling_steps=25,
    samples=600,
)


def make_digits(recipe: Recipe, data: Path, out: Path) -> None:
    """Every stage in turn, the pipeline, and its card."""
    images = kept_pictures(data / "train.zip", recipe, LEARNT, out / "train.safetensors")
    test = kept_pictures(data / "test.zip", recipe, PLACES, out / "test.safetensors")
    autoencoder, first = train_autoencoder(recipe, images.pixels, unchanged, out)
    latents = rescale_(autoencoder, latents_of(recipe, autoencoder, images.pixels, out))
    denoiser, second = train_denoiser(recipe, latents, out)
    export(recipe, autoencoder, denoiser, out / "pipeline")
    judge, third = train_classifier(recipe, images, unchanged, out)
    stages = {"autoencoder": first, "denoiser": second, "judge": third}
    describe(recipe, stages, judge, images, test, out)


def export(recipe: Recipe, autoencoder: AutoencoderKL, denoiser: UNet2DModel, folder: Path) -> None:
    """Write the pipeline folder, weights in half precision."""
    scheduler = DDIMScheduler(**recipe.scheduler)
    AudioDiffusionPipeline(halved(autoencoder), halved(denoiser), build_mel(), scheduler).save_pretrained(folder)
    write_notice(recipe.name, folder)


def describe(
    recipe: Recipe, stages: Mapping[str, Trained], judge: Classifier, train: Images, test: Images, out: Path
) -> None:
    """The card, and what the first samples sound like."""
    pipeline = DiffusionPipeline.from_pretrained(out / "pipeline").to(recipe.device)
    samples = draw(silent(pipeline), recipe.samples, recipe.sampling_steps)
    shown = Shown(train.pixels, test.pixels, reconstructions(pipeline.vqvae, test.pixels), samples)
    said = verdicts(judge, shown, train, test) | heard(judge, samples[:HEARD], test)
    said |= {
        f"{name}_remoteness": remoteness(it, train.pixels) for name, it in (("sample", samples), ("test", test.pixels))
    }
    write_judge(judge, out / "card")
    write_notice(recipe.name, out / "card")
    write_card(report(recipe, stages, out / "pipeline", judge, shown) | {"judge": said}, out / "card")
    write_samples(samples, out / "card" / "samples.png")
    write_sounds(sounds_of(samples[:KEPT], build_mel()), out / "card")


def read_pictures(archive: Path, seed: int, places: int = PLACES) -> Images:
    """Mel pictures of the recordings in `archive`, each at several random places in silence."""
    sounds, mel, generator = read_sounds(archive), build_mel(), torch.Generator().manual_seed(seed)
    placings = [placed(sounds, mel, generator) for _ in range(places)]
    pixels, labels = (torch.cat([getattr(it, name) for it in placings]) for name in ("pixels", "labels"))
    return Images(pixels, labels, sounds.classes)


def kept_pictures(archive: Path, recipe: Recipe, places: int, path: Path) -> Images:
    """Mel pictures of the recordings in `archive`, made once and kept in `path`."""
    if not path.exists():
        images = read_pictures(archive, recipe.seed, places)
        write_checkpoint(path, {"pixels": images.pixels, "labels": images.labels}, {"classes": images.classes})
    tensors, state = read_checkpoint(path)
    return Images(tensors["pixels"], tensors["labels"], tuple(state["classes"]))


def heard(judge: Classifier, samples: Tensor, test: Images) -> dict[str, Any]:
    """What the judge thinks of pictures that have been made sound, and pictures again."""
    mel = build_mel()
    chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[: len(samples)]
    seen = classify(judge, samples)
    again, real = (classify(judge, pictures(sounds_of(it, mel), mel)) for it in (samples, test.pixels[chosen]))
    return {
        "heard": len(samples),
        "sample_confidence_heard": float(again.amax(1).mean()),
        "sample_agreement_heard": float((again.argmax(1) == seen.argmax(1)).float().mean()),
        "test_confidence_heard": float(real.amax(1).mean()),
        "test_accuracy_heard": float((real.argmax(1) == test.labels[chosen]).float().mean()),
    }
