"""The zoo: what ships loads and is as small as promised, and training can be interrupted."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from scipy.linalg import sqrtm
from torch import Tensor, nn

from zoo.autoencoder import build_autoencoder, reconstruction
from zoo.card import card_text
from zoo.checkpoints import read_checkpoint, write_checkpoint
from zoo.data import Images, to_pixels, to_signal, turned
from zoo.denoiser import build_denoiser, noise_prediction
from zoo.judge import Judge, classification, read_judge, write_judge
from zoo.quality import frechet_distance
from zoo.satellite import SATELLITE
from zoo.train import train_decoder
from zoo.training import Loss, Schedule, averaged_weights, train

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "src" / "ldpruner" / "zoo" / "satellite"
CARD = ROOT / "zoo" / "satellite"

SCHEDULE = Schedule(steps=6, batch=4, rate=1e-3, warmup=2, checkpoint_every=2)


@pytest.fixture(scope="module")
def images() -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(40) % 2, ("meadow", "sea"))


def small_autoencoder(images: Images) -> tuple[nn.Module, Loss]:
    settings = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "norm_num_groups": 2,
    }
    return build_autoencoder(settings, 0), reconstruction(images, 1e-6, 0.5, 0.5)


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
    return build_denoiser(settings, 0), noise_prediction(latents, DDIMScheduler())


def small_judge(images: Images) -> tuple[nn.Module, Loss]:
    return Judge(images.classes, seed=0), classification(images)


def interrupted(loss: Loss, calls: int) -> Loss:
    """The same loss, which fails as Ctrl-C would at call number `calls`."""
    left = iter(range(calls))

    def failing(module: nn.Module, batch: int, generator: torch.Generator) -> Tensor:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return loss(module, batch, generator)

    return failing


@pytest.mark.parametrize("make", [small_autoencoder, small_denoiser, small_judge])
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


def test_training_the_decoder_further_leaves_the_encoder_alone(images: Images, tmp_path: Path) -> None:
    start = small_autoencoder(images)[0].requires_grad_(False)
    before = {name: it.clone() for name, it in start.state_dict().items()}
    latents = torch.zeros(40, 4, 8, 8)
    recipe = replace(SATELLITE, decoder_schedule=SCHEDULE)
    after = train_decoder(recipe, start, latents, images.pixels, tmp_path)[0].state_dict()

    encoder = [name for name in before if name.startswith(("encoder.", "quant_conv."))]
    assert encoder
    assert all(torch.equal(after[name], before[name].half().float()) for name in encoder)
    assert not torch.equal(after["decoder.conv_out.weight"], before["decoder.conv_out.weight"].half().float())


def test_a_finished_training_is_read_back_without_a_step(images: Images, tmp_path: Path) -> None:
    module, loss = small_judge(images)
    first = train(module, loss, SCHEDULE, tmp_path / "judge.safetensors")
    again = train(small_judge(images)[0], interrupted(loss, 0), SCHEDULE, tmp_path / "judge.safetensors")

    assert again.losses == first.losses
    assert averaged_weights(tmp_path / "judge.safetensors")[1] == SCHEDULE.steps


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
    judge = Judge(images.classes, seed=0).eval()
    generator = torch.Generator().manual_seed(5)
    real, other = ((torch.rand(300, 3, 16, 16, generator=generator) * top).to(torch.uint8) for top in (256, 200))

    expected = independent_distance(judge, real, other)
    assert frechet_distance(judge, real, other) == pytest.approx(expected, rel=1e-2)


def independent_distance(judge: Judge, real: Tensor, other: Tensor) -> float:
    with torch.no_grad():
        first, second = (judge.features(to_signal(it)).double().numpy() for it in (real, other))
    covariances = [np.cov(it, rowvar=False) for it in (first, second)]
    product = np.real(sqrtm(covariances[0] @ covariances[1]))
    gap = first.mean(0) - second.mean(0)
    return float(gap @ gap + np.trace(covariances[0] + covariances[1] - 2 * product))


def test_the_frechet_distance_of_a_set_to_itself_is_nothing(images: Images) -> None:
    judge = Judge(images.classes, seed=0).eval()
    assert frechet_distance(judge, images.pixels, images.pixels) == pytest.approx(0, abs=1e-4)


def test_a_judge_is_read_back_as_it_was_written(images: Images, tmp_path: Path) -> None:
    judge = Judge(images.classes, seed=4).eval()
    write_judge(judge, tmp_path)
    signal = to_signal(images.pixels)
    assert torch.equal(read_judge(tmp_path)(signal), judge(signal))


def test_the_shipped_pipeline_draws_images_with_plain_diffusers() -> None:
    pipeline = DiffusionPipeline.from_pretrained(SHIPPED)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    drawn = pipeline(batch_size=2, generator=generators, num_inference_steps=4, output_type="numpy").images

    assert drawn.shape == (2, 64, 64, 3)
    assert np.isfinite(drawn).all()
    assert drawn.std() > 0.02


def test_the_shipped_pipeline_is_small() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) <= 20_000_000


def test_the_shipped_settings_name_no_folder_of_the_machine_they_were_made_on() -> None:
    for path in [*SHIPPED.rglob("*.json"), *CARD.rglob("*.json")]:
        assert not [it for it in strings(json.loads(path.read_text())) if it.startswith(("/", "~"))], path


def strings(value: object) -> Iterator[str]:
    """Every string in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from strings([*value, *value.values()])
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CARD / "results.json").read_text())
    return found


def test_the_results_say_what_they_were_measured_with(results: dict[str, Any]) -> None:
    assert isinstance(results["recipe"]["seed"], int)
    assert {"python", "torch", "diffusers", "torchmetrics"} <= results["versions"].keys()
    assert results["machine"]["processor"]
    assert results["machine"]["cores"] >= 1
    assert all(row["count"] >= 2000 for row in results["frechet_distance"])
    assert all(math.isfinite(row["distance"]) for row in results["frechet_distance"])


def test_the_samples_are_nearer_to_real_images_than_flat_colours(results: dict[str, Any]) -> None:
    distances = {row["images"]: row["distance"] for row in results["frechet_distance"]}
    assert distances["train"] < distances["samples"] < distances["colours"] < distances["noise"]


def test_the_card_is_made_from_the_results(results: dict[str, Any]) -> None:
    assert (CARD / "README.md").read_text() == card_text(results)


def test_the_shipped_judge_is_the_one_of_the_results(results: dict[str, Any]) -> None:
    judge = read_judge(CARD)
    parameters = sum(it.numel() for it in judge.parameters())
    assert (parameters, judge.num_features) == (
        results["judge"]["parameters"],
        results["judge"]["features"],
    )
    assert (CARD / "judge.safetensors").stat().st_size < 2_000_000
