"""The stages that turn a recipe and its data into networks. One that is finished is read back, not repeated."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from diffusers import DDIMScheduler

from zoo.autoencoder import build_autoencoder, difference, encode, latent_shape, reconstruction
from zoo.checkpoints import read_checkpoint, write_checkpoint
from zoo.classifier import Classifier, classification
from zoo.denoiser import build_denoiser, denoising
from zoo.perception import Perception
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
    schedule = getattr(recipe, f"{name}_schedule")
    trained = train(module.to(recipe.device), chosen, schedule, out / f"{name}.safetensors")
    return trained.module.cpu(), trained


def train_autoencoder(
    recipe: Recipe, pixels: Tensor, change: Change, out: Path, perception: Perception | None = None
) -> tuple[AutoencoderKL, Trained]:
    """The autoencoder, rounded to the half precision it ships in, so that the denoiser learns its very latents."""

    def differs(output: Tensor, target: Tensor) -> Tensor:
        total = difference(output, target, recipe.detail, recipe.texture)
        return total + recipe.likeness * perception.difference(output, target) if perception else total

    if perception is not None:
        perception.requires_grad_(False).to(recipe.device)
    shape = latent_shape(recipe.autoencoder, pixels)
    loss = reconstruction(pixels, change, shape, recipe.divergence, differs)
    module = build_autoencoder(recipe.autoencoder, recipe.seed)
    autoencoder, trained = train_stage(recipe, "autoencoder", module, loss, out)
    return autoencoder.half().float(), trained


def latents_of(recipe: Recipe, autoencoder: AutoencoderKL, views: Tensor, out: Path) -> Tensor:
    """Unscaled latents of `views`, computed once."""
    path = out / "latents.safetensors"
    if not path.exists():
        logger.info("encoding %d images", len(views))
        write_checkpoint(path, {"latents": encode(autoencoder.to(recipe.device), views)}, {})
        autoencoder.cpu()
    return read_checkpoint(path)[0]["latents"]


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


def train_classifier(recipe: Recipe, images: Images, change: Change, out: Path) -> tuple[Classifier, Trained]:
    """The judge of labelled images, whose features measure quality; it never sees a test image."""
    module = Classifier(images.classes, images.pixels.shape[1], recipe.seed)
    return train_stage(recipe, "judge", module, classification(images, change), out)


def train_perception(recipe: Recipe, images: Images, change: Change, out: Path) -> tuple[Perception, Trained]:
    """What says to the autoencoder which images look alike: trained as the judge is, but another network."""
    module = Perception(len(images.classes), recipe.seed)
    return train_stage(recipe, "perception", module, classification(images, change), out)
