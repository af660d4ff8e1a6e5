"""zoo:emoji, emoji pictures from their names, 64x64, trained on three sets of emoji."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel

from ldpruner.finetuning import Training
from zoo.captions import Captioned, read_captioned
from zoo.card import write_captioned, write_card, write_notice
from zoo.data import mirrored, rolled
from zoo.feature_network import write_feature_network
from zoo.matcher import Matcher, contrastive, vocabulary
from zoo.quality import ImageSets, reconstructions
from zoo.recipe import V_PREDICTION, CaptionedRecipe
from zoo.report import report
from zoo.retrieval import retrieval
from zoo.sampling import in_half_precision, sample_captioned
from zoo.stages import latents_of, rescale_, train_autoencoder, train_stage
from zoo.text import CaptionedDenoiser, build_text_encoder, build_tokenizer, captioned_denoising, tokens_of

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
    autoencoder={
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (32, 64, 96),
        "layers_per_block": 1,
        "latent_channels": 6,
        "norm_num_groups": 8,
        "sample_size": 64,
    },
    autoencoder_training=Training(
        max_train_steps=2200,
        train_batch_size=160,
        learning_rate=1e-3,
        lr_warmup_steps=100,
        adam_weight_decay=1e-4,
        ema_decay=0.995,
        seed=1,
        checkpointing_steps=1100,
        mixed_precision="bf16",
    ),
    kl_weight=2e-6,
    detail_weight=0.5,
    texture_weight=0.15,
    styles=("noto", "twemoji", "fluent flat"),
    text_encoder={
        "hidden_size": 160,
        "intermediate_size": 640,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    },
    vocabulary_size=3000,
    max_tokens=32,
    caption_dropout=0.1,
    min_snr_gamma=5.0,
    guidance=4.0,
    denoiser={
        "sample_size": 16,
        "in_channels": 6,
        "out_channels": 6,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (96, 128, 160),
        "layers_per_block": 2,
        "cross_attention_dim": 160,
        "attention_head_dim": 4,
        "norm_num_groups": 16,
    },
    denoiser_training=Training(
        max_train_steps=8400,
        train_batch_size=256,
        learning_rate=1e-3,
        lr_warmup_steps=300,
        seed=2,
        checkpointing_steps=2100,
        mixed_precision="bf16",
    ),
    scheduler=V_PREDICTION,
    feature_network_training=Training(
        max_train_steps=1200,
        train_batch_size=128,
        learning_rate=2e-3,
        lr_warmup_steps=100,
        adam_weight_decay=0.05,
        seed=3,
        checkpointing_steps=250,
        mixed_precision="bf16",
    ),
    sampling_steps=25,
    samples=895,
)


def make_emoji(recipe: CaptionedRecipe, data: Path, out: Path) -> None:
    """Every stage in turn, the pipeline, and its card."""
    pictures, test = (read_captioned(data / f"{split}.zip", recipe.styles) for split in ("train", "test"))
    autoencoder, first = train_autoencoder(recipe, pictures.pixels, mirrored, out)
    latents = rescale_(autoencoder, latents_of(recipe, autoencoder, pictures.pixels, out))
    tokenizer = build_tokenizer(pictures.descriptions, recipe.vocabulary_size, recipe.max_tokens)
    loss = denoiser_loss(recipe, tokenizer, pictures, latents)
    denoiser, second = train_stage(recipe, "denoiser", build_denoiser(recipe, tokenizer), loss, out)
    export(recipe, autoencoder, tokenizer, denoiser, out / "pipeline")
    shown = pictures.subset(recipe.samples, recipe.seed)
    (out / "pipeline" / "prompts.txt").write_text("\n".join(shown.captions) + "\n")
    matcher, third = train_matcher(recipe, pictures, out)
    stages = {"autoencoder": first, "denoiser": second, "feature_network": third}
    describe(recipe, stages, matcher, pictures, test, out)


def export(
    recipe: CaptionedRecipe,
    autoencoder: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    denoiser: CaptionedDenoiser,
    folder: Path,
) -> None:
    """Writes the pipeline folder: weights in half precision, those of the text encoder in single precision.

    Transformers opens weights in the precision they are stored in, diffusers in single precision.
    """
    StableDiffusionPipeline(
        vae=in_half_precision(autoencoder),
        text_encoder=denoiser.text_encoder,
        tokenizer=tokenizer,
        unet=in_half_precision(denoiser.unet),
        scheduler=DDIMScheduler(**recipe.scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    write_notice(recipe.name, folder)


def build_denoiser(recipe: CaptionedRecipe, tokenizer: CLIPTokenizer) -> CaptionedDenoiser:
    """An untrained denoiser and text encoder, initialised from the seed of the recipe."""
    encoder = build_text_encoder(recipe.text_encoder, tokenizer, recipe.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return CaptionedDenoiser(UNet2DConditionModel(**recipe.denoiser), encoder)


def denoiser_loss(recipe: CaptionedRecipe, tokenizer: CLIPTokenizer, pictures: Captioned, latents: Tensor) -> Loss:
    """The loss of the denoiser on scaled latents with their captions, with and without keywords."""
    wordings = torch.stack([tokens_of(tokenizer, texts) for texts in (pictures.captions, pictures.descriptions)])
    return captioned_denoising(
        latents,
        wordings,
        tokens_of(tokenizer, [""]),
        DDIMScheduler(**recipe.scheduler),
        caption_dropout=recipe.caption_dropout,
        min_snr_gamma=recipe.min_snr_gamma,
    )


def train_matcher(recipe: CaptionedRecipe, pictures: Captioned, out: Path) -> tuple[Matcher, Trained]:
    """The feature network of captioned pictures; it is trained on the training split only."""
    module = Matcher(vocabulary(pictures.captions), pictures.pixels.shape[1], recipe.seed)
    loss = contrastive(pictures, module.bags(pictures.captions), rolled)
    return train_stage(recipe, "feature_network", module, loss, out)


def describe(
    recipe: CaptionedRecipe,
    stages: Mapping[str, Trained],
    matcher: Matcher,
    train: Captioned,
    test: Captioned,
    out: Path,
) -> None:
    """The card, with samples of training captions, and of test captions, whose names are new to the model.

    Test captions have keywords, which say what an unknown name is.
    """
    pipeline = DiffusionPipeline.from_pretrained(out / "pipeline").to(recipe.device)
    old, new = (pictures.subset(recipe.samples, recipe.seed) for pictures in (train, test))
    of_old, of_new = (
        sample_captioned(pipeline, prompts, recipe.sampling_steps, recipe.guidance)
        for prompts in (old.captions, new.descriptions)
    )
    of_autoencoder = {name: reconstructions(pipeline.vae, part.pixels) for name, part in (("old", old), ("new", new))}
    sets = ImageSets(train.pixels, new.pixels, of_autoencoder["new"], of_new)
    rows = (
        ("training", "real", old.pixels, old),
        ("training", "reconstructions", of_autoencoder["old"], old),
        ("training", "samples", of_old, old),
        ("test", "real", new.pixels, new),
        ("test", "reconstructions", of_autoencoder["new"], new),
        ("test", "samples", of_new, new),
    )
    metrics: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in matcher.parameters()),
        "features": matcher.num_features,
        "styles": len(set(test.styles)),
        "retrieval": [
            {"captions": split, "pictures": kind} | retrieval(matcher, pixels, pictures)
            for split, kind, pixels, pictures in rows
        ],
    }
    write_feature_network(matcher, out / "card")
    write_notice(recipe.name, out / "card")
    results = report(recipe, stages, out / "pipeline", matcher, sets)
    write_card(results | {"feature_network": metrics}, out / "card")
    write_captioned(of_old, old.captions, out / "card" / "samples.png")
    write_captioned(of_new, new.captions, out / "card" / "samples-test-captions.png")
