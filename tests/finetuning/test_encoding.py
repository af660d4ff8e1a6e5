"""Encoding pictures as a pipeline would decode them."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import ldpruner
from ldpruner.errors import FinetuningError
from ldpruner.finetuning.encoding import Encoder, find_encoder
from ldpruner.pipelines.running import networks
from tests.families import FAMILIES
from tests.families.parts import PROMPTS, picture


def test_encoding_inverts_decoding(tiny_text: DiffusionPipeline, tiny: DiffusionPipeline) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1
    for pipeline, name in ((tiny_text, "vae"), (tiny, "vqvae")):
        encoder = find_encoder(pipeline, ldpruner.Probe(samples=1, steps=2))
        autoencoder: Any = networks(pipeline)[name]
        factor = autoencoder.config.scaling_factor
        torch.testing.assert_close(encoder.rearrangement.scale, torch.full((256,), 1 / factor).double())
        with torch.no_grad():
            wanted = autoencoder.encode(pixels).latent_dist.mode() * factor
        torch.testing.assert_close(encoder([picture]), wanted, rtol=1e-3, atol=1e-4)


def test_pictures_of_other_shapes_are_cropped_in_the_middle(tiny: DiffusionPipeline) -> None:
    encoder = find_encoder(tiny, ldpruner.Probe(samples=1, steps=2))
    square = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    wide = Image.new("RGB", (24, 16))
    wide.paste(square, (4, 0))
    torch.testing.assert_close(encoder([wide]), encoder([square.convert("RGBA")]))


def encoder_of(name: str) -> tuple[Any, Encoder]:
    """A pipeline of a family, and what encodes for it."""
    family = FAMILIES[name]
    pipeline = family.pipeline()
    return pipeline, find_encoder(
        pipeline, ldpruner.Probe(samples=1, steps=2, prompts=PROMPTS, call=dict(family.call))
    )


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_packed_latents_are_encoded_as_flux_packs_them() -> None:
    pipeline, encoder = encoder_of("flux")
    latents = encoder([picture()])
    pixels = torch.from_numpy(np.array(picture())).permute(2, 0, 1)[None] / 127.5 - 1
    config = pipeline.vae.config
    encoded = (pipeline.vae.encode(pixels).latent_dist.mode() - config.shift_factor) * config.scaling_factor
    torch.testing.assert_close(latents, pipeline._pack_latents(encoded, 1, 4, 8, 8), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_a_video_is_encoded_frame_by_frame_or_as_a_whole() -> None:
    frames = [picture(16).rotate(90 * turn) for turn in range(3)]
    pixels = torch.stack([torch.from_numpy(np.array(frame)).permute(2, 0, 1) for frame in frames]) / 127.5 - 1
    pipeline, encoder = encoder_of("wan")  # of five frames
    video = pixels[[0, 1, 2, 2, 2]].transpose(0, 1)[None]
    torch.testing.assert_close(encoder([frames])[0], pipeline.vae.encode(video).latent_dist.mode()[0])
    pipeline, encoder = encoder_of("animatediff")  # of two frames, decoded as pictures
    encoded = pipeline.vae.encode(pixels[:2]).latent_dist.mode().transpose(0, 1)[None]
    torch.testing.assert_close(encoder([frames]), encoded, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_pixels_are_their_own_latents() -> None:
    _, encoder = encoder_of("deepfloyd-if")
    assert encoder.autoencoder is None
    torch.testing.assert_close(
        encoder([picture()])[0], torch.from_numpy(np.array(picture())).permute(2, 0, 1) / 127.5 - 1
    )


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_a_sound_is_cut_or_ends_in_silence() -> None:
    pipeline, encoder = encoder_of("longcat-audio")
    length = encoder.decoded[-1]
    sound = np.random.default_rng(0).uniform(-1, 1, (1, length // 2))
    wave = torch.nn.functional.pad(torch.from_numpy(sound).float(), (0, length - length // 2))
    encoded = pipeline.vae.encode(wave[None], sample_posterior=False).latents
    torch.testing.assert_close(encoder([sound]), encoded.transpose(1, 2))
    with pytest.raises(FinetuningError, match="is no picture"):
        encoder([picture()])


@pytest.mark.filterwarnings("ignore")
def test_what_decodes_nothing_that_it_could_encode_is_refused() -> None:
    with pytest.raises(FinetuningError, match="decodes nothing that it could encode; finetune without data"):
        find_encoder(FAMILIES["dance-diffusion"].pipeline(), ldpruner.Probe(samples=1, steps=2))
