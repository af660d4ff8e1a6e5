"""Training of the zoo: it can be interrupted, and its scripts run from the data to the card."""

import io
import json
import sys
import wave
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn

from ldpruner.errors import FinetuningError
from tests.zoo.conftest import AUTOENCODER, CAPTIONED_DENOISER, CAPTIONS, DENOISER, SHORT, TEXT_ENCODER
from zoo import train as script
from zoo.autoencoder import build_autoencoder, difference, latent_shape, reconstruction
from zoo.captions import Captioned
from zoo.classifier import Classifier, classification
from zoo.data import Images, rolled, turned
from zoo.denoiser import add_noise, build_denoiser, denoising
from zoo.emoji import EMOJI
from zoo.feature_network import read_feature_network
from zoo.matcher import Matcher, contrastive, vocabulary
from zoo.perception import PerceptualNetwork
from zoo.satellite import SATELLITE
from zoo.stages import train_autoencoder
from zoo.text import CaptionedDenoiser, build_text_encoder, build_tokenizer, captioned_denoising, tokens_of
from zoo.training import Loss, train


def small_autoencoder(images: Images) -> tuple[nn.Module, Loss]:
    image_loss = partial(difference, detail_weight=0.5, texture_weight=0.5)
    shape = latent_shape(AUTOENCODER, images.pixels)
    return build_autoencoder(AUTOENCODER, 0), reconstruction(images.pixels, turned, shape, 1e-6, image_loss)


def small_perceptual_network(images: Images) -> tuple[nn.Module, Loss]:
    return PerceptualNetwork(len(images.classes), seed=0), classification(images, turned)


def small_denoiser(_: Images) -> tuple[nn.Module, Loss]:
    latents = torch.randn(20, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return build_denoiser(DENOISER, 0), denoising(latents, DDIMScheduler())


def small_classifier(images: Images) -> tuple[nn.Module, Loss]:
    return Classifier(images.classes, channels=3, seed=0), classification(images, turned)


def small_matcher(images: Images) -> tuple[nn.Module, Loss]:
    names, styles = zip(*(caption.removesuffix(" style").split(", ") for caption in CAPTIONS * 10), strict=True)
    matcher = Matcher(vocabulary(CAPTIONS), channels=3, seed=0)
    pictures = Captioned(images.pixels, names, styles, ("animals-nature, cat",) * 40)
    return matcher, contrastive(pictures, matcher.bags(CAPTIONS * 10), rolled)


def small_captioned_denoiser(_: Images) -> tuple[nn.Module, Loss]:
    tokenizer = build_tokenizer(CAPTIONS, vocabulary_size=560, max_tokens=12)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**CAPTIONED_DENOISER)
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    tokens, empty = torch.stack([tokens_of(tokenizer, CAPTIONS)] * 2), tokens_of(tokenizer, [""])
    scheduler = DDIMScheduler(prediction_type="v_prediction")
    loss = captioned_denoising(latents, tokens, empty, scheduler, caption_dropout=0.5, min_snr_gamma=5)
    return CaptionedDenoiser(unet, build_text_encoder(TEXT_ENCODER, tokenizer, seed=0)), loss


def interrupted(loss: Loss, calls: int) -> Loss:
    """The same loss, which fails as with Ctrl-C after some calls."""
    remaining = iter(range(calls))

    def sample(batch: int, generator: torch.Generator) -> Sequence[Tensor]:
        if next(remaining, None) is None:
            raise KeyboardInterrupt
        return loss.sample(batch, generator)

    return Loss(sample, loss.value)


@pytest.mark.parametrize(
    "make",
    [
        small_autoencoder,
        small_perceptual_network,
        small_denoiser,
        small_classifier,
        small_matcher,
        small_captioned_denoiser,
    ],
)
def test_an_interrupted_training_gives_the_same_weights(
    make: Callable[[Images], tuple[nn.Module, Loss]], images: Images, tmp_path: Path
) -> None:
    precision = "bf16" if make is small_captioned_denoiser else "no"
    training = SHORT.replace(mixed_precision=precision)
    module, loss = make(images)
    whole = train(module, loss, training, tmp_path / "whole.safetensors")
    module, loss = make(images)
    with pytest.raises(KeyboardInterrupt):
        train(module, interrupted(loss, 5), training, tmp_path / "parts.safetensors")
    module, loss = make(images)
    parts = train(module, interrupted(loss, 2), training, tmp_path / "parts.safetensors")
    assert parts.losses == whole.losses
    weights = parts.module.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in whole.module.state_dict().items())


def test_a_finished_training_is_read_without_a_step(images: Images, tmp_path: Path) -> None:
    module, loss = small_classifier(images)
    first = train(module, loss, SHORT, tmp_path / "network.safetensors")
    module, loss = small_classifier(images)
    again = train(module, interrupted(loss, 0), SHORT, tmp_path / "network.safetensors")
    assert again.losses == first.losses
    assert len(first.losses) == 6
    assert again.seconds == first.seconds
    module, loss = small_classifier(images)
    with pytest.raises(FinetuningError, match="is of another training"):
        train(module, loss, SHORT.replace(seed=1), tmp_path / "network.safetensors")


def test_an_autoencoder_learns_from_the_perceptual_loss(images: Images, tmp_path: Path) -> None:
    recipe = replace(SATELLITE, autoencoder=AUTOENCODER, autoencoder_training=SHORT)
    plain, perceptual = (
        train_autoencoder(recipe, images.pixels, turned, tmp_path / str(network is None), network)[1].losses
        for network in (None, PerceptualNetwork(2, seed=0))
    )
    assert all(more > less for less, more in zip(plain, perceptual, strict=True))


def test_the_perceptual_distance_compares_texture_not_pixels() -> None:
    network = PerceptualNetwork(2, seed=0)
    fine = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)).round() * 2 - 1
    moved, blurred = fine.roll((3, 5), (2, 3)), torch.zeros_like(fine)
    same, elsewhere, none = (network.difference(images, fine).item() for images in (fine, moved, blurred))
    assert same == 0
    assert 0 < elsewhere < none
    assert (moved - fine).abs().mean() >= (blurred - fine).abs().mean()


def test_a_scheduler_recovers_the_clean_latents_from_the_target() -> None:
    clean = torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    for prediction in ("epsilon", "v_prediction"):
        scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False)
        noisy, target, times = add_noise(clean, scheduler, torch.Generator().manual_seed(1))
        scheduler.set_timesteps(1000)
        steps = zip(target, times, noisy, strict=True)
        recovered = [scheduler.step(output, int(time), sample).pred_original_sample for output, time, sample in steps]
        assert torch.allclose(torch.stack(recovered), clean, atol=1e-2)


def write_archives(folder: Path, rows: Sequence[dict[str, Any]], encoded: Iterator[bytes], suffix: str) -> None:
    """Writes train.zip and test.zip with the same files, as the Hub's imagefolder and audiofolder are."""
    contents = list(encoded)
    for name in ("train", "test"):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            lines = [json.dumps({"file_name": f"{i}.{suffix}"} | row) for i, row in enumerate(rows)]
            archive.writestr("metadata.jsonl", "\n".join(lines))
            for i, content in enumerate(contents):
                archive.writestr(f"{i}.{suffix}", content)


def png(pixels: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "png")
    return buffer.getvalue()


def wav(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as opened:
        opened.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        opened.writeframes((samples * 20000).astype("<i2").tobytes())
    return buffer.getvalue()


def write_data(model: str, images: Images, folder: Path) -> None:
    pictures = (png(pixels) for pixels in images.pixels[:12])
    if model == "emoji":
        keywords = {"group": "smileys-emotion", "keywords": ["face", "happy"]}
        captions = [keywords | {"caption": f"face {i}", "style": ("noto", "fluent-flat")[i % 2]} for i in range(12)]
        write_archives(folder, captions, pictures, "png")
    elif model == "satellite":
        rows = [{"label": i % 2, "label_name": images.classes[i % 2]} for i in range(12)]
        write_archives(folder, rows, pictures, "png")
    else:
        tones = (wav(np.sin(np.arange(4000) * (0.2 + 0.1 * i))) for i in range(3))
        write_archives(folder, [{"label": i} for i in range(3)], tones, "wav")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "model", [pytest.param(name, marks=[] if name == "satellite" else pytest.mark.extensive) for name in script.MAKERS]
)
def test_the_script_trains_a_pipeline_and_writes_its_card(
    model: str, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, recipe = script.MAKERS[model]
    tiny = SHORT.replace(max_train_steps=2)
    stages = [name for name in vars(recipe) if name.endswith("_training") and getattr(recipe, name)]
    changes: dict[str, Any] = dict.fromkeys(stages, tiny) | {"sampling_steps": 2, "samples": 12}
    side, channels = (64, 1) if model == "digits" else (16, 3)
    autoencoder = AUTOENCODER | {"in_channels": channels, "out_channels": channels, "sample_size": side}
    denoiser = (CAPTIONED_DENOISER if model == "emoji" else DENOISER) | {"sample_size": side // 2}
    if model == "emoji":
        changes |= {"text_encoder": TEXT_ENCODER, "vocabulary_size": 560, "max_tokens": 12}
    small = replace(recipe, autoencoder=autoencoder, denoiser=denoiser, **changes)
    monkeypatch.setattr("zoo.digits.AS_SOUND", 2)
    monkeypatch.setattr("zoo.digits.WRITTEN", 1)
    monkeypatch.setattr(script, "MAKERS", {model: (make, small)})
    write_data(model, images, tmp_path)
    arguments = ["zoo.train", model, "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    script.main()
    card = tmp_path / "out" / "card"
    results = json.loads((card / "results.json").read_text())
    assert {stage["steps"] for stage in results["stages"].values()} == {2}
    assert f"zoo:{model}" in (card / "README.md").read_text()
    assert read_feature_network(card).num_features == 96
    DiffusionPipeline.from_pretrained(tmp_path / "out" / "pipeline")


@pytest.mark.gpu
def test_a_network_trains_alike_with_cuda_graphs(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = []
    for name in ("graphs", "eager"):
        module, loss = small_captioned_denoiser(images)
        trained = train(module.cuda(), loss, SHORT.replace(mixed_precision="bf16"), tmp_path / name)
        trained.module.cpu()(torch.zeros(1, 4, 8, 8), torch.zeros(1).long(), torch.zeros(1, 12).long())
        losses.append(trained.losses)
        monkeypatch.setattr("zoo.training._capture_", lambda *_: None)
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_low_noise_levels_count_less_and_the_last_level_counts_in_full() -> None:
    scheduler = DDIMScheduler(**EMOJI.scheduler)
    latents, tokens = torch.zeros(1, 4, 8, 8), torch.zeros(1, 1, 3).long()
    options = {"caption_dropout": 0.0, "min_snr_gamma": 5.0}
    loss = captioned_denoising(latents, tokens, tokens[0], scheduler, **options)
    *_, times, _, weights = loss.sample(1000, torch.Generator().manual_seed(0))
    by_time = dict(zip(times.tolist(), weights.tolist(), strict=True))
    assert by_time[0] < 0.1
    assert by_time[999] == 1
    assert all(by_time[time] <= by_time[time + 1] for time in range(999))


def test_a_recipe_knows_the_steps_of_its_stages() -> None:
    assert (SATELLITE.steps("perceptual_network"), EMOJI.steps("perceptual_network")) == (2000, 0)
    assert EMOJI.to_json()["denoiser_training"]["learning_rate"] == 1e-3
