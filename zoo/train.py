"""Train a zoo model: `python -m zoo.train satellite --data FOLDER --out FOLDER`.

To resume, run the same command again.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel

from zoo.autoencoder import build_autoencoder, decoding, encode, reconstruction
from zoo.card import write_card, write_notice
from zoo.checkpoints import read_checkpoint, write_checkpoint
from zoo.data import Images, read_images, turned
from zoo.denoiser import build_denoiser, export, noise_prediction
from zoo.judge import Judge, classification, write_judge
from zoo.quality import Account, measure
from zoo.satellite import SATELLITE
from zoo.training import Trained, train

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.recipe import Recipe

logger = logging.getLogger(__name__)

RECIPES = {SATELLITE.name: SATELLITE}


def train_autoencoder(recipe: Recipe, images: Images, out: Path) -> tuple[AutoencoderKL, Trained]:
    """The autoencoder, rounded to the half precision it ships in, so that the denoiser learns its very latents."""
    loss = reconstruction(images, recipe.divergence, recipe.detail, recipe.texture)
    module = build_autoencoder(recipe.autoencoder, recipe.seed)
    trained = train(module, loss, recipe.autoencoder_schedule, out / "autoencoder.safetensors")
    return trained.module.half().float(), trained


def views_of(recipe: Recipe, images: Images) -> Tensor:
    """The pixels of every image as it is, then turned at random: [2 x samples, channels, height, width]."""
    other = turned(images.pixels, torch.Generator().manual_seed(recipe.seed))
    return torch.cat([images.pixels, other])


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
    trained = train(autoencoder, loss, recipe.decoder_schedule, out / "decoder.safetensors")
    return trained.module.half().float(), trained


def train_denoiser(recipe: Recipe, latents: Tensor, out: Path) -> tuple[UNet2DModel, Trained]:
    """The denoiser of latents that are already scaled to unit deviation."""
    loss = noise_prediction(latents, DDIMScheduler(**recipe.scheduler))
    module = build_denoiser(recipe.denoiser, recipe.seed)
    trained = train(module, loss, recipe.denoiser_schedule, out / "denoiser.safetensors")
    return trained.module, trained


def refine_denoiser(recipe: Recipe, denoiser: UNet2DModel, latents: Tensor, out: Path) -> tuple[UNet2DModel, Trained]:
    """The denoiser trained further from its averaged weights, the learning rate rising and falling once more."""
    loss = noise_prediction(latents, DDIMScheduler(**recipe.scheduler))
    trained = train(denoiser.requires_grad_(True), loss, recipe.refinement_schedule, out / "refinement.safetensors")
    return trained.module, trained


def train_judge(recipe: Recipe, images: Images, out: Path) -> tuple[Judge, Trained]:
    """The classifier whose features measure quality; it never sees a test image."""
    module = Judge(images.classes, recipe.seed)
    trained = train(module, classification(images), recipe.judge_schedule, out / "judge.safetensors")
    module.load_state_dict(trained.module.state_dict())
    return module.eval(), trained


def run(recipe: Recipe, data: Path, out: Path) -> None:
    """Every stage in turn; a stage that is finished is read back, not repeated."""
    images = read_images(data / "train.zip")
    views = views_of(recipe, images)
    autoencoder, first = train_autoencoder(recipe, images, out)
    latents = latents_of(autoencoder, views, out)
    autoencoder, second = train_decoder(recipe, autoencoder, latents, views, out)
    scale = 1 / latents.std().item()
    denoiser, third = train_denoiser(recipe, latents * scale, out)
    denoiser, fourth = refine_denoiser(recipe, denoiser, latents * scale, out)
    judge, fifth = train_judge(recipe, images, out)
    autoencoder.register_to_config(scaling_factor=scale)
    export(out / "pipeline", denoiser, autoencoder, DDIMScheduler(**recipe.scheduler))
    write_notice(recipe.name, out / "pipeline")
    write_judge(judge, out / "card")
    stages = {"autoencoder": first, "decoder": second, "denoiser": third, "refinement": fourth, "judge": fifth}
    test = read_images(data / "test.zip")
    results, samples = measure(Account(recipe, stages), out / "pipeline", judge, images, test)
    write_card(results, samples, out / "card")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--data", type=Path, required=True, help="folder with train.zip and test.zip")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and results")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    run(RECIPES[options.model], options.data, options.out)


if __name__ == "__main__":
    main()
