"""Encoding pictures as a pipeline would decode them."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import ldpruner
from ldpruner.errors import FinetuningError
from ldpruner.finetuning.encoding import find_encoder
from ldpruner.pipelines.running import networks
from tests.families import FAMILIES
from tests.families.parts import PROMPTS


def test_encoding_inverts_decoding(tiny_text: DiffusionPipeline, tiny: DiffusionPipeline) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1
    for pipeline, name in ((tiny_text, "vae"), (tiny, "vqvae")):
        encoder = find_encoder(pipeline, ldpruner.Probe(samples=1, steps=2))
        autoencoder: Any = networks(pipeline)[name]
        factor = autoencoder.config.scaling_factor
        torch.testing.assert_close(encoder.scale.flatten(), torch.full((4,), 1 / factor).double(), rtol=1e-4, atol=0)
        with torch.no_grad():
            wanted = autoencoder.encode(pixels).latent_dist.mode() * factor
        torch.testing.assert_close(encoder([picture]), wanted, rtol=1e-3, atol=1e-4)


def test_pictures_of_other_shapes_are_cropped_in_the_middle(tiny: DiffusionPipeline) -> None:
    encoder = find_encoder(tiny, ldpruner.Probe(samples=1, steps=2))
    square = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    wide = Image.new("RGB", (24, 16))
    wide.paste(square, (4, 0))
    torch.testing.assert_close(encoder([wide]), encoder([square.convert("RGBA")]))


def test_packed_latents_need_the_teachers_own_samples() -> None:
    family = FAMILIES["flux"]
    with pytest.raises(FinetuningError, match="finetune without data"):
        find_encoder(family.pipeline(), ldpruner.Probe(samples=1, steps=2, prompts=PROMPTS, call=dict(family.call)))
