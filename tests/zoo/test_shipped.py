"""The models that ship: they load with plain diffusers, are small, and their cards are made from their results."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import DiffusionPipeline

from tests.zoo.conftest import CAPTIONS
from zoo.card import card_text
from zoo.feature_network import read_feature_network
from zoo.sampling import pixels_of, sample, seeded, without_sound

ROOT = Path(__file__).parents[2]
ZOO = ROOT / "zoo"
SHIPPED = {
    "satellite": ROOT / "src" / "ldpruner" / "zoo" / "satellite",
    "emoji": ROOT / "src" / "ldpruner" / "zoo" / "emoji",
    "digits": ZOO / "digits" / "pipeline",
}


LIMITS = {"satellite": 20_000_000, "emoji": 40_000_000, "digits": 25_000_000}  # bytes


@pytest.mark.parametrize("model", SHIPPED)
def test_plain_diffusers_samples_from_the_shipped_pipeline(model: str) -> None:
    pipeline = DiffusionPipeline.from_pretrained(SHIPPED[model])
    pipeline.set_progress_bar_config(disable=True)
    pixels = pixels_of(call(model, pipeline, 2).images).float()
    assert pixels.shape == (2, 1 if model == "digits" else 3, 64, 64)
    assert pixels.std() > 5


def call(model: str, pipeline: DiffusionPipeline, count: int) -> Any:
    """Four steps of a shipped pipeline, called as its card shows."""
    if model == "emoji":
        return pipeline(list(CAPTIONS[:count]), generator=seeded(0, count), num_inference_steps=4)
    steps = "steps" if model == "digits" else "num_inference_steps"
    return pipeline(batch_size=count, generator=seeded(0, count), **{steps: 4})


def test_the_pipeline_without_sound_samples_the_same_pictures() -> None:
    pipeline = DiffusionPipeline.from_pretrained(SHIPPED["digits"])
    pipeline.set_progress_bar_config(disable=True)
    output = call("digits", pipeline, 2)
    assert output.audios.shape == (2, 1, 8064)
    assert np.abs(output.audios).max() > 0
    difference = (sample(without_sound(pipeline), 2, 4).int() - pixels_of(output.images).int()).abs()
    assert difference.max() <= 1  # the two round differently
    assert difference.float().mean() < 0.01


@pytest.mark.parametrize("model", SHIPPED)
def test_the_shipped_pipeline_is_small(model: str) -> None:
    files = [path for path in SHIPPED[model].rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMITS[model]


@pytest.mark.parametrize("model", SHIPPED)
def test_the_shipped_settings_name_no_folder_of_a_machine(model: str) -> None:
    for path in [*SHIPPED[model].rglob("*.json"), *(ZOO / model).rglob("*.json")]:
        assert not [text for text in strings(json.loads(path.read_text())) if text.startswith(("/", "~"))], path


def strings(value: object) -> Iterator[str]:
    """Every string among the values in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from strings([*value.values()])
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)


def results_of(model: str) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((ZOO / model / "results.json").read_text())
    return results


@pytest.fixture(scope="module", params=SHIPPED)
def results(request: pytest.FixtureRequest) -> dict[str, Any]:
    return results_of(request.param)


def test_the_results_name_the_versions_and_the_machine(results: dict[str, Any]) -> None:
    assert isinstance(results["recipe"]["seed"], int)
    assert {"python", "torch", "diffusers", "torchmetrics"} <= results["versions"].keys()
    assert results["machine"]["processor"]
    assert results["machine"]["cores"] >= 1
    assert all(row["count"] >= 500 for row in results["frechet_distance"])
    assert all(math.isfinite(row["distance"]) for row in results["frechet_distance"])


def test_the_samples_are_nearer_to_real_images_than_flat_colours(results: dict[str, Any]) -> None:
    distances = {row["images"]: row["distance"] for row in results["frechet_distance"]}
    assert distances["train"] < distances["samples"] < distances["colours"] < distances["noise"]


def test_emoji_of_training_captions_are_retrieved_and_others_beyond_chance() -> None:
    rows = results_of("emoji")["feature_network"]["retrieval"]
    assert {row["pictures"] for row in rows} == {"real", "reconstructions", "samples"}
    assert all(row["R@1"] > (0.5 if row["captions"] == "training" else 10 / row["count"]) for row in rows)
    assert all(row["style_accuracy"] > 0.6 for row in rows)


def test_every_digit_is_sampled_and_recognized_beyond_chance() -> None:
    metrics = results_of("digits")["feature_network"]
    assert min(metrics["sample_classes"].values()) > 0.02
    assert min(metrics["sample_confidence"], metrics["sample_confidence_as_sound"]) > 4 * 0.1
    assert metrics["sample_agreement_as_sound"] > 0.5


def test_the_card_is_made_from_the_results(results: dict[str, Any]) -> None:
    assert (ZOO / results["model"] / "README.md").read_text() == card_text(results)


def test_the_shipped_feature_network_is_the_one_of_the_results(results: dict[str, Any]) -> None:
    folder = ZOO / results["model"]
    network = read_feature_network(folder)
    parameters, metrics = sum(weight.numel() for weight in network.parameters()), results["feature_network"]
    assert (parameters, network.num_features) == (metrics["parameters"], metrics["features"])
    assert (folder / "feature_network.safetensors").stat().st_size < 4_000_000
