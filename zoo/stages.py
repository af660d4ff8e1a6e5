"""The stages that turn a recipe and its data into networks. A finished stage is read, not repeated."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from diffusers import DDIMScheduler

from ldpruner.finetuning.state import read_tensors, write_tensors
from zoo.autoencoder import build_autoencoder, difference, encode, latent_shape, reconstruction
from zoo.classifier import Classifier, classification
from zoo.denoiser import build_denoiser, denoising
from zoo.perception import PerceptualNetwork
from zoo.training import train

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import AutoencoderKL, UNet2DModel
    from torch import Tensor, nn

    from zoo.data import Augmentation, Images
    from zoo.recipe import Recipe
    from zoo.training import Loss, Trained

logger = logging.getLogger(__name__)


def train_stage(recipe: Recipe, name: str, module: nn.Module, loss: Loss, out: Path) -> tuple[Any, Trained]:
    """Trains `module` as the recipe says for stage `name`: its averaged weights, and the record of the training."""
    logger.info("stage %s", name)
    training, checkpoint = getattr(recipe, f"{name}_training"), out / f"{name}.safetensors"
    trained = train(module.to(recipe.device), loss, training, checkpoint)
    return trained.module.cpu(), trained


def train_autoencoder(
    recipe: Recipe, pixels: Tensor, augment: Augmentation, out: Path, perceptual: PerceptualNetwork | None = None
) -> tuple[AutoencoderKL, Trained]:
    """The autoencoder, rounded to the half precision of its files, so that the denoiser gets the same latents."""

    def image_loss(output: Tensor, target: Tensor) -> Tensor:
        total = difference(output, target, recipe.detail_weight, recipe.texture_weight)
        return total + recipe.perceptual_weight * perceptual.difference(output, target) if perceptual else total

    if perceptual is not None:
        perceptual.requires_grad_(False).to(recipe.device)
    shape = latent_shape(recipe.autoencoder, pixels)
    loss = reconstruction(pixels, augment, shape, recipe.kl_weight, image_loss)
    module = build_autoencoder(recipe.autoencoder, recipe.seed)
    autoencoder, trained = train_stage(recipe, "autoencoder", module, loss, out)
    return autoencoder.half().float(), trained


def latents_of(recipe: Recipe, autoencoder: AutoencoderKL, views: Tensor, out: Path) -> Tensor:
    """Unscaled latents of `views`, computed once."""
    path = out / "latents.safetensors"
    if not path.exists():
        logger.info("encoding %d images", len(views))
        write_tensors(path, {"latents": encode(autoencoder.to(recipe.device), views)})
        autoencoder.cpu()
    return read_tensors(path)[0]["latents"]


def rescale_(autoencoder: AutoencoderKL, latents: Tensor) -> Tensor:
    """The latents at unit deviation; the factor goes into the autoencoder's configuration."""
    scale = 1 / latents.std().item()
    autoencoder.register_to_config(scaling_factor=scale)
    return latents * scale


def train_denoiser(recipe: Recipe, latents: Tensor, out: Path) -> tuple[UNet2DModel, Trained]:
    """The denoiser of latents that are already scaled to unit deviation."""
    loss = denoising(latents, DDIMScheduler(**recipe.scheduler))
    return train_stage(recipe, "denoiser", build_denoiser(recipe.denoiser, recipe.seed), loss, out)


def refine_denoiser(recipe: Recipe, denoiser: UNet2DModel, latents: Tensor, out: Path) -> tuple[UNet2DModel, Trained]:
    """The denoiser trained further from its averaged weights, with a second learning rate schedule."""
    loss = denoising(latents, DDIMScheduler(**recipe.scheduler))
    return train_stage(recipe, "refinement", denoiser, loss, out)


def train_classifier(recipe: Recipe, images: Images, augment: Augmentation, out: Path) -> tuple[Classifier, Trained]:
    """The feature network of labelled images; it is trained on the training split only."""
    module = Classifier(images.classes, images.pixels.shape[1], recipe.seed)
    return train_stage(recipe, "feature_network", module, classification(images, augment), out)


def train_perceptual_network(
    recipe: Recipe, images: Images, augment: Augmentation, out: Path
) -> tuple[PerceptualNetwork, Trained]:
    """The network of the autoencoder's perceptual loss: another classifier than the feature network."""
    module = PerceptualNetwork(len(images.classes), recipe.seed)
    return train_stage(recipe, "perceptual_network", module, classification(images, augment), out)
