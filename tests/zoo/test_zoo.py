"""The zoo: what ships loads and is as small as promised, and training can be interrupted."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from scipy.linalg import sqrtm
from torch import Tensor, nn

from zoo.autoencoder import build_autoencoder, difference, latent_shape, reconstruction
from zoo.captions import Captioned
from zoo.card import card_text
from zoo.checkpoints import read_checkpoint, write_checkpoint
from zoo.classifier import Classifier, classification
from zoo.data import Images, rolled, to_pixels, to_signal, turned
from zoo.denoiser import build_denoiser, denoising, noised
from zoo.drawing import draw, pixels_of, seeded, silent
from zoo.eye import features_of
from zoo.judge import read_judge, write_judge
from zoo.matcher import Matcher, known_words, matching
from zoo.perception import Perception
from zoo.quality import frechet_distance
from zoo.retrieval import retrieval
from zoo.satellite import SATELLITE
from zoo.sounds import Sounds, build_mel, placed, sounds_of
from zoo.stages import train_autoencoder
from zoo.text import Reader, build_text_encoder, build_tokenizer, captioned_denoising, tokens_of
from zoo.training import Loss, Schedule, averaged_weights, in_bfloat16, train

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).parents[2]
ZOO = ROOT / "zoo"

SHIPPED = {
    "satellite": ROOT / "src" / "ldpruner" / "zoo" / "satellite",
    "emoji": ZOO / "emoji" / "pipeline",
    "digits": ZOO / "digits" / "pipeline",
}

CAPTIONS = ("cat face, noto style", "red heart, noto style", "cat face, fluent flat style", "keycap: 7, twemoji style")

SMALL_AUTOENCODER = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 8),
    "norm_num_groups": 2,
}

SCHEDULE = Schedule(steps=6, batch=4, rate=1e-3, warmup=2, checkpoint_every=2)


@pytest.fixture(scope="module")
def images() -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(40) % 2, ("meadow", "sea"))


def small_autoencoder(images: Images) -> tuple[nn.Module, Loss]:
    differs = partial(difference, detail=0.5, texture=0.5)
    shape = latent_shape(SMALL_AUTOENCODER, images.pixels)
    return build_autoencoder(SMALL_AUTOENCODER, 0), reconstruction(images.pixels, turned, shape, 1e-6, differs)


def small_perception(images: Images) -> tuple[nn.Module, Loss]:
    return Perception(len(images.classes), seed=0), classification(images, turned)


def small_denoiser(_: Images) -> tuple[nn.Module, Loss]:
    settings = {
        "sample_size": 4,
        "in_channels": 2,
        "out_channels": 2,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
    }
    latents = torch.randn(20, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    return build_denoiser(settings, 0), denoising(latents, DDIMScheduler())


def small_judge(images: Images) -> tuple[nn.Module, Loss]:
    return Classifier(images.classes, channels=3, seed=0), classification(images, turned)


def small_pictures(images: Images) -> Captioned:
    names, styles = zip(*(caption.removesuffix(" style").split(", ") for caption in CAPTIONS * 10), strict=True)
    return Captioned(images.pixels, names, styles)


def small_matcher(images: Images) -> tuple[nn.Module, Loss]:
    judge = Matcher(known_words(CAPTIONS), channels=3, seed=0)
    return judge, matching(small_pictures(images), judge.bags(CAPTIONS * 10), rolled)


def small_reader(_: Images) -> tuple[nn.Module, Loss]:
    tokenizer = build_tokenizer(CAPTIONS, words=560, length=12)
    settings = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = build_text_encoder(settings, tokenizer, seed=0)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=4,
        in_channels=2,
        out_channels=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    latents = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    tokens, empty = tokens_of(tokenizer, CAPTIONS), tokens_of(tokenizer, [""])
    scheduler = DDIMScheduler(prediction_type="v_prediction")
    loss = captioned_denoising(latents, tokens, empty, 0.5, scheduler)
    return Reader(unet, encoder), in_bfloat16(loss)


def interrupted(loss: Loss, calls: int) -> Loss:
    """The same loss, which fails as Ctrl-C would at call number `calls`."""
    left = iter(range(calls))

    def failing(batch: int, generator: torch.Generator) -> Sequence[Tensor]:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return loss.draw(batch, generator)

    return Loss(failing, loss.value)


@pytest.mark.parametrize(
    "make", [small_autoencoder, small_perception, small_denoiser, small_judge, small_matcher, small_reader]
)
def test_training_interrupted_and_resumed_gives_the_same_weights(
    make: Callable[[Images], tuple[nn.Module, Loss]], images: Images, tmp_path: Path
) -> None:
    module, loss = make(images)
    whole = train(module, loss, SCHEDULE, tmp_path / "whole.safetensors")
    module, loss = make(images)
    with pytest.raises(KeyboardInterrupt):
        train(module, interrupted(loss, 5), SCHEDULE, tmp_path / "parts.safetensors")
    module, loss = make(images)
    parts = train(module, interrupted(loss, 2), SCHEDULE, tmp_path / "parts.safetensors")

    assert parts.losses == whole.losses
    weights = parts.module.state_dict()
    assert all(torch.equal(weights[name], it) for name, it in whole.module.state_dict().items())


def test_images_look_alike_when_they_have_the_same_texture_not_the_same_pixels() -> None:
    perception = Perception(2, seed=0)
    fine = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)).round() * 2 - 1
    moved, blurred = fine.roll((3, 5), (2, 3)), torch.zeros_like(fine)
    same, elsewhere, none = (perception.difference(it, fine).item() for it in (fine, moved, blurred))

    assert same == 0
    assert 0 < elsewhere < none
    assert (moved - fine).abs().mean() >= (blurred - fine).abs().mean()


def test_an_autoencoder_learns_from_what_looks_alike(images: Images, tmp_path: Path) -> None:
    recipe = replace(SATELLITE, autoencoder=SMALL_AUTOENCODER, autoencoder_schedule=SCHEDULE)
    parts = (None, Perception(2, seed=0).requires_grad_(False))
    losses = [
        train_autoencoder(recipe, images.pixels, turned, tmp_path / str(part is None), part)[1].losses
        for part in parts
    ]
    assert all(more > less for less, more in zip(*losses, strict=True))


def test_a_finished_training_is_read_back_without_a_step(images: Images, tmp_path: Path) -> None:
    module, loss = small_judge(images)
    first = train(module, loss, SCHEDULE, tmp_path / "judge.safetensors")
    again = train(small_judge(images)[0], interrupted(loss, 0), SCHEDULE, tmp_path / "judge.safetensors")

    assert again.losses == first.losses
    assert averaged_weights(tmp_path / "judge.safetensors")[1] == SCHEDULE.steps


def test_a_stage_may_end_before_its_rate_has_come_to_zero() -> None:
    whole = Schedule(steps=100, batch=1, rate=1e-3, warmup=10)
    part = replace(whole, steps=50, horizon=100)
    assert [part.rate_at(step) for step in range(50)] == [whole.rate_at(step) for step in range(50)]
    assert part.rate_at(49) > 4e-4


def test_a_checkpoint_of_other_settings_is_refused(images: Images, tmp_path: Path) -> None:
    module, loss = small_judge(images)
    train(module, loss, SCHEDULE, tmp_path / "judge.safetensors")
    with pytest.raises(ValueError, match="remove it to train anew"):
        train(module, loss, replace(SCHEDULE, rate=2e-3), tmp_path / "judge.safetensors")


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "stage.safetensors"
    write_checkpoint(path, {"weight": torch.ones(2)}, {"step": 1})
    with pytest.raises(TypeError):
        write_checkpoint(path, {"weight": torch.zeros(2)}, {"step": object()})

    tensors, state = read_checkpoint(path)
    assert tensors["weight"].tolist() == [1, 1]
    assert state == {"step": 1}


def test_bytes_survive_the_way_through_the_signal() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_pixels(to_signal(pixels)), pixels)


def test_turning_reaches_all_eight_symmetries_of_the_square() -> None:
    corner = torch.arange(4.0).reshape(1, 1, 2, 2)
    seen = turned(corner.expand(400, 1, 2, 2), torch.Generator().manual_seed(0))
    assert len({tuple(it.flatten().tolist()) for it in seen}) == 8


def test_the_frechet_distance_agrees_with_scipy(images: Images) -> None:
    judge = Classifier(images.classes, channels=3, seed=0).eval()
    generator = torch.Generator().manual_seed(5)
    real, other = ((torch.rand(300, 3, 16, 16, generator=generator) * top).to(torch.uint8) for top in (256, 200))

    expected = independent_distance(judge, real, other)
    assert frechet_distance(judge, real, other) == pytest.approx(expected, rel=1e-2)


def independent_distance(judge: Classifier, real: Tensor, other: Tensor) -> float:
    with torch.no_grad():
        first, second = (judge.features(to_signal(it)).double().numpy() for it in (real, other))
    covariances = [np.cov(it, rowvar=False) for it in (first, second)]
    product = np.real(sqrtm(covariances[0] @ covariances[1]))
    gap = first.mean(0) - second.mean(0)
    return float(gap @ gap + np.trace(covariances[0] + covariances[1] - 2 * product))


def test_the_frechet_distance_of_a_set_to_itself_is_nothing(images: Images) -> None:
    judge = Classifier(images.classes, channels=3, seed=0).eval()
    assert frechet_distance(judge, images.pixels, images.pixels) == pytest.approx(0, abs=1e-4)


def test_a_judge_is_read_back_as_it_was_written(images: Images, tmp_path: Path) -> None:
    classifier = Classifier(images.classes, channels=3, seed=4).eval()
    matcher = Matcher(known_words(CAPTIONS), channels=3, seed=4).eval()
    for judge in (classifier, matcher):
        write_judge(judge, tmp_path)
        again = read_judge(tmp_path)
        assert type(again) is type(judge)
        assert torch.equal(features_of(again, images.pixels), features_of(judge, images.pixels))


def test_velocity_and_noise_give_the_clean_latents_back() -> None:
    clean = torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    for kind in ("epsilon", "v_prediction"):
        scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
        noisy, target, times = noised(clean, scheduler, torch.Generator().manual_seed(1))
        scheduler.set_timesteps(1000)
        steps = zip(target, times, noisy, strict=True)
        found = [scheduler.step(it, int(time), seen).pred_original_sample for it, time, seen in steps]
        assert torch.allclose(torch.stack(found), clean, atol=1e-2)


def test_a_tokenizer_is_the_same_each_time_it_is_made() -> None:
    first, second = (build_tokenizer(CAPTIONS, words=560, length=12) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert first.tokenize("cat face, noto style") == ["cat</w>", "face</w>", ",</w>", "noto</w>", "style</w>"]


def test_retrieval_counts_the_captions_that_fit_better_than_the_right_one() -> None:
    class Counting(Matcher):
        """Of four captions, the third is right for no picture, and its style always is."""

        def forward(self, images: Tensor, captions: Tensor) -> Tensor:
            right = captions @ self.bags(CAPTIONS).T
            return right.T * torch.tensor([1.0, 1.0, -1.0, 1.0])[:, None]

    names, styles = zip(*(caption.removesuffix(" style").split(", ") for caption in CAPTIONS), strict=True)
    pictures = Captioned(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), names, styles)
    found = retrieval(Counting(known_words(CAPTIONS), channels=3, seed=0), pictures.pixels, pictures)
    assert (found["count"], found["first"], found["five"]) == (4, 0.75, 1.0)
    assert found["style"] == 0.75


def test_a_recording_is_placed_whole_in_silence_and_a_long_one_is_cut() -> None:
    mel = build_mel()
    tone = np.sin(np.arange(2000) * 0.5).astype(np.float32)
    sounds = Sounds((tone, np.tile(tone, 6)), torch.tensor([3, 4]), ("3", "4"))
    short, long = placed(sounds, mel, torch.Generator().manual_seed(0)).pixels[:, 0]

    assert short.shape == long.shape == (64, 64)
    assert 14 <= (short.amax(0) > 128).sum() <= 22
    assert (long.amax(0) > 128).all()


def test_a_mel_picture_that_was_made_sound_looks_much_the_same() -> None:
    mel = build_mel()
    tone = np.sin(np.arange(4000) * 0.5).astype(np.float32)
    picture = placed(Sounds((tone,), torch.tensor([0]), ("0",)), mel, torch.Generator().manual_seed(0)).pixels
    again = placed(Sounds(tuple(sounds_of(picture, mel)), torch.tensor([0]), ("0",)), mel, torch.Generator())
    assert (again.pixels.amax(3).argmax(2) - picture.amax(3).argmax(2)).abs().item() <= 1


@pytest.mark.parametrize("model", SHIPPED)
def test_the_shipped_pipeline_draws_images_with_plain_diffusers(model: str) -> None:
    pipeline = DiffusionPipeline.from_pretrained(SHIPPED[model])
    pipeline.set_progress_bar_config(disable=True)
    drawn = pixels_of(call(model, pipeline, 2).images).float()

    assert drawn.shape == (2, 1 if model == "digits" else 3, 64, 64)
    assert drawn.std() > 5


def call(model: str, pipeline: DiffusionPipeline, count: int) -> Any:
    """Two steps of a shipped pipeline, as its card says to call it."""
    if model == "emoji":
        return pipeline(list(CAPTIONS[:count]), generator=seeded(0, count), num_inference_steps=4)
    steps = "steps" if model == "digits" else "num_inference_steps"
    return pipeline(batch_size=count, generator=seeded(0, count), **{steps: 4})


def test_the_silent_pipeline_draws_what_the_loud_one_makes_sound_of() -> None:
    pipeline = DiffusionPipeline.from_pretrained(SHIPPED["digits"])
    pipeline.set_progress_bar_config(disable=True)
    output = call("digits", pipeline, 2)

    assert output.audios.shape == (2, 1, 8064)
    assert np.abs(output.audios).max() > 0
    apart = (draw(silent(pipeline), 2, 4).int() - pixels_of(output.images).int()).abs()
    assert apart.max() <= 1  # the two round by different arithmetic
    assert apart.float().mean() < 0.01


@pytest.mark.parametrize("model", SHIPPED)
def test_the_shipped_pipeline_is_small(model: str) -> None:
    files = [path for path in SHIPPED[model].rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25_000_000
    assert sum(path.stat().st_size for path in SHIPPED["satellite"].rglob("*") if path.is_file()) <= 20_000_000


@pytest.mark.parametrize("model", SHIPPED)
def test_the_shipped_settings_name_no_folder_of_the_machine_they_were_made_on(model: str) -> None:
    for path in [*SHIPPED[model].rglob("*.json"), *(ZOO / model).rglob("*.json")]:
        assert not [it for it in strings(json.loads(path.read_text())) if it.startswith(("/", "~"))], path


def strings(value: object) -> Iterator[str]:
    """Every string among the values in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from strings([*value.values()])
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)


@pytest.fixture(scope="module", params=SHIPPED)
def results(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ZOO / request.param / "results.json").read_text())
    return found


def test_the_results_say_what_they_were_measured_with(results: dict[str, Any]) -> None:
    assert isinstance(results["recipe"]["seed"], int)
    assert {"python", "torch", "diffusers", "torchmetrics"} <= results["versions"].keys()
    assert results["machine"]["processor"]
    assert results["machine"]["cores"] >= 1
    assert all(row["count"] >= 600 for row in results["frechet_distance"])
    assert all(math.isfinite(row["distance"]) for row in results["frechet_distance"])


def test_the_samples_are_nearer_to_real_images_than_flat_colours(results: dict[str, Any]) -> None:
    distances = {row["images"]: row["distance"] for row in results["frechet_distance"]}
    assert distances["train"] < distances["samples"] < distances["colours"] < distances["noise"]


def test_the_pictures_of_emoji_follow_their_captions_far_beyond_chance() -> None:
    found = json.loads((ZOO / "emoji" / "results.json").read_text())["judge"]["retrieval"]
    assert {row["pictures"] for row in found} == {"real", "reconstructions", "samples"}
    assert all(row["first"] > 10 / row["count"] for row in found)
    assert all(row["style"] > 2 * 0.2 for row in found)


def test_every_digit_is_heard_and_more_surely_than_by_chance() -> None:
    judge = json.loads((ZOO / "digits" / "results.json").read_text())["judge"]
    assert min(judge["sample_classes"].values()) > 0.02
    assert min(judge["sample_confidence"], judge["sample_confidence_heard"]) > 4 * 0.1
    assert judge["sample_agreement_heard"] > 0.5


def test_the_card_is_made_from_the_results(results: dict[str, Any]) -> None:
    assert (ZOO / results["model"] / "README.md").read_text() == card_text(results)


def test_the_shipped_judge_is_the_one_of_the_results(results: dict[str, Any]) -> None:
    folder = ZOO / results["model"]
    judge = read_judge(folder)
    parameters = sum(it.numel() for it in judge.parameters())
    assert (parameters, judge.num_features) == (results["judge"]["parameters"], results["judge"]["features"])
    assert (folder / "judge.safetensors").stat().st_size < 4_000_000
