"""The stages that turn a recipe and its data into networks. One that is finished is read back, not repeated."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

from diffusers import DDIMScheduler

from zoo.autoencoder import build_autoencoder, decoding, encode, reconstruction
from zoo.checkpoints import read_checkpoint, write_checkpoint
from zoo.classifier import Classifier, classification
from zoo.denoiser import build_denoiser, denoising, led_away
from zoo.training import in_bfloat16, train

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import AutoencoderKL, UNet2DModel
    from torch import Tensor, nn

    from zoo.data import Change, Images
    from zoo.recipe import Recipe
    from zoo.training import Loss, Trained

logger = logging.getLogger(__name__)


def train_stage(recipe: Recipe, name: str, module: nn.Module, loss: Loss, out: Path) -> tuple[Any, Trained]:
    """`module` trained by the schedule of stage `name`: its averaged weights, and the record of the training."""
    chosen = in_bfloat16(loss) if recipe.bfloat16 else loss
    trained = train(module, chosen, getattr(recipe, f"{name}_schedule"), out / f"{name}.safetensors")
    return trained.module, trained


def train_autoencoder(recipe: Recipe, pixels: Tensor, change: Change, out: Path) -> tuple[AutoencoderKL, Trained]:
    """The autoencoder, rounded to the half precision it ships in, so that the denoiser learns its very latents."""
    loss = reconstruction(pixels, change, recipe.divergence, recipe.detail, recipe.texture)
    module = build_autoencoder(recipe.autoencoder, recipe.seed)
    autoencoder, trained = train_stage(recipe, "autoencoder", module, loss, out)
    return autoencoder.half().float(), trained


def latents_of(autoencoder: AutoencoderKL, views: Tensor, out: Path) -> Tensor:
    """Unscaled latents of `views`, computed once."""
    path = out / "latents.safetensors"
    if not path.exists():
        logger.info("encoding %d images", len(views))
        write_checkpoint(path, {"latents": encode(autoencoder, views)}, {})
    return read_checkpoint(path)[0]["latents"]


def train_decoder(
    recipe: Recipe, autoencoder: AutoencoderKL, latents: Tensor, views: Tensor, out: Path
) -> tuple[AutoencoderKL, Trained]:
    """The autoencoder with its decoder trained further; its encoder, and so every latent, stays as it is."""
    for part in (autoencoder.decoder, autoencoder.post_quant_conv):
        part.requires_grad_(True)
    loss = decoding(latents, views, recipe.detail, recipe.texture)
    decoder, trained = train_stage(recipe, "decoder", autoencoder, loss, out)
    return decoder.half().float(), trained


def rescale_(autoencoder: AutoencoderKL, latents: Tensor) -> Tensor:
    """The latents at unit deviation; the autoencoder is told by which factor."""
    scale = 1 / latents.std().item()
    autoencoder.register_to_config(scaling_factor=scale)
    return latents * scale


def train_denoiser(recipe: Recipe, latents: Tensor, out: Path) -> tuple[UNet2DModel, Trained]:
    """The denoiser of latents that are already scaled to unit deviation."""
    loss = denoising(latents, DDIMScheduler(**recipe.scheduler))
    return train_stage(recipe, "denoiser", build_denoiser(recipe.denoiser, recipe.seed), loss, out)


def refine_denoiser(recipe: Recipe, denoiser: UNet2DModel, latents: Tensor, out: Path) -> tuple[UNet2DModel, Trained]:
    """The denoiser trained further from its averaged weights, the learning rate rising and falling once more."""
    loss = denoising(latents, DDIMScheduler(**recipe.scheduler))
    return train_stage(recipe, "refinement", denoiser.requires_grad_(True), loss, out)


def lead_denoiser(
    recipe: Recipe, strong: UNet2DModel, weak: UNet2DModel, latents: Tensor, out: Path
) -> tuple[UNet2DModel, Trained]:
    """A denoiser that finds at once what the strong one finds when it is led away from the weak one."""
    loss = led_away(latents, DDIMScheduler(**recipe.scheduler), strong, weak, recipe.led)
    return train_stage(recipe, "guidance", copy.deepcopy(strong).requires_grad_(True), loss, out)


def train_classifier(recipe: Recipe, images: Images, change: Change, out: Path) -> tuple[Classifier, Trained]:
    """The judge of labelled images, whose features measure quality; it never sees a test image."""
    module = Classifier(images.classes, images.pixels.shape[1], recipe.seed)
    return train_stage(recipe, "judge", module, classification(images, change), out)
