"""zoo:emoji, emoji pictures from their names, 64x64, trained on five sets of emoji."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel

from zoo.captions import Captioned, read_captioned
from zoo.card import write_captioned, write_card, write_notice
from zoo.data import mirrored, rolled
from zoo.drawing import draw_captioned, halved
from zoo.judge import write_judge
from zoo.matcher import Matcher, known_words, matching
from zoo.quality import Shown, reconstructions
from zoo.recipe import VELOCITY, CaptionedRecipe
from zoo.report import report
from zoo.retrieval import retrieval
from zoo.stages import latents_of, rescale_, train_autoencoder, train_stage
from zoo.text import Reader, build_text_encoder, build_tokenizer, captioned_denoising, tokens_of
from zoo.training import Schedule

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from diffusers import AutoencoderKL
    from torch import Tensor
    from transformers import CLIPTokenizer

    from zoo.training import Loss, Trained

EMOJI = CaptionedRecipe(
    name="emoji",
    seed=0,
    bfloat16=True,
    autoencoder={
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (16, 48, 96, 128),
        "layers_per_block": 1,
        "latent_channels": 12,
        "norm_num_groups": 2,
        "sample_size": 64,
    },
    autoencoder_schedule=Schedule(
        steps=1250, horizon=2200, batch=8, rate=7e-4, warmup=50, weight_decay=1e-4, average=0.995, seed=1
    ),
    divergence=5e-6,
    detail=0.5,
    texture=0.15,
    text_encoder={
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    words=2000,
    length=24,
    forgotten=0.12,
    guidance=4.0,
    denoiser={
        "sample_size": 8,
        "in_channels": 12,
        "out_channels": 12,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (64, 128, 128),
        "layers_per_block": 1,
        "cross_attention_dim": 128,
        "attention_head_dim": 4,
        "norm_num_groups": 32,
    },
    denoiser_schedule=Schedule(steps=2000, horizon=4000, batch=32, rate=1e-3, warmup=100, seed=2),
    refinement_schedule=Schedule(steps=1000, batch=32, rate=8e-4, warmup=25, average=0.998, seed=5),
    scheduler=VELOCITY,
    judge_schedule=Schedule(steps=800, batch=128, rate=2e-3, warmup=100, weight_decay=0.05, seed=3),
    sampling_steps=25,
    samples=895,
)


def make_emoji(recipe: CaptionedRecipe, data: Path, out: Path) -> None:
    """Every stage in turn, the pipeline, and its card."""
    pictures, test = read_captioned(data / "train.zip"), read_captioned(data / "test.zip")
    autoencoder, first = train_autoencoder(recipe, pictures.pixels, mirrored, out)
    latents = rescale_(autoencoder, latents_of(recipe, autoencoder, pictures.pixels, out))
    tokenizer = build_tokenizer(pictures.captions, recipe.words, recipe.length)
    loss = reading(recipe, tokenizer, pictures.captions, latents)
    reader, second = train_stage(recipe, "denoiser", build_reader(recipe, tokenizer), loss, out)
    reader, third = train_stage(recipe, "refinement", reader.requires_grad_(True), loss, out)
    export(recipe, autoencoder, tokenizer, reader, out / "pipeline")
    judge, fourth = train_judge(recipe, pictures, out)
    stages = {"autoencoder": first, "denoiser": second, "refinement": third, "judge": fourth}
    describe(recipe, stages, judge, pictures, test, out)


def export(
    recipe: CaptionedRecipe, autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, reader: Reader, folder: Path
) -> None:
    """Write the pipeline folder, weights in half precision but for those of the text encoder.

    Transformers opens weights in the precision they are stored in, diffusers in single precision.
    """
    StableDiffusionPipeline(
        vae=halved(autoencoder),
        text_encoder=reader.text_encoder,
        tokenizer=tokenizer,
        unet=halved(reader.unet),
        scheduler=DDIMScheduler(**recipe.scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    write_notice(recipe.name, folder)


def build_reader(recipe: CaptionedRecipe, tokenizer: CLIPTokenizer) -> Reader:
    """An untrained denoiser and text encoder, their random start fixed by the seed of the recipe."""
    encoder = build_text_encoder(recipe.text_encoder, tokenizer, recipe.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return Reader(UNet2DConditionModel(**recipe.denoiser), encoder)


def reading(recipe: CaptionedRecipe, tokenizer: CLIPTokenizer, captions: tuple[str, ...], latents: Tensor) -> Loss:
    """The loss of a denoiser that reads the captions of scaled latents."""
    tokens, empty = tokens_of(tokenizer, captions), tokens_of(tokenizer, [""])
    scheduler = DDIMScheduler(**recipe.scheduler)
    return captioned_denoising(latents, tokens, empty, recipe.forgotten, scheduler)


def train_judge(recipe: CaptionedRecipe, pictures: Captioned, out: Path) -> tuple[Matcher, Trained]:
    """The judge of pictures and captions; it never sees a test picture."""
    module = Matcher(known_words(pictures.captions), pictures.pixels.shape[1], recipe.seed)
    loss = matching(pictures, module.bags(pictures.captions), rolled)
    return train_stage(recipe, "judge", module, loss, out)


def describe(
    recipe: CaptionedRecipe,
    stages: Mapping[str, Trained],
    judge: Matcher,
    train: Captioned,
    test: Captioned,
    out: Path,
) -> None:
    """The card: pictures of test captions, whose names are new to the model, and as many of captions it has seen."""
    pipeline = DiffusionPipeline.from_pretrained(out / "pipeline").to(recipe.device)
    old, new = (pictures.drawn(recipe.samples, recipe.seed) for pictures in (train, test))
    known, unknown = (
        draw_captioned(pipeline, it.captions, recipe.sampling_steps, recipe.guidance) for it in (old, new)
    )
    shown = Shown(train.pixels, new.pixels, reconstructions(pipeline.vae, new.pixels), unknown)
    rows = (
        ("training", "real", old.pixels, old),
        ("training", "samples", known, old),
        ("test", "real", new.pixels, new),
        ("test", "reconstructions", shown.rebuilt, new),
        ("test", "samples", unknown, new),
    )
    said: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in judge.parameters()),
        "features": judge.num_features,
        "styles": len(set(test.styles)),
        "retrieval": [
            {"captions": split, "pictures": kind} | retrieval(judge, pixels, pictures)
            for split, kind, pixels, pictures in rows
        ],
    }
    write_judge(judge, out / "card")
    write_notice(recipe.name, out / "card")
    write_card(report(recipe, stages, out / "pipeline", judge, shown) | {"judge": said}, out / "card")
    write_captioned(unknown, new.captions, out / "card" / "samples.png")
    write_captioned(known, old.captions, out / "card" / "known.png")
