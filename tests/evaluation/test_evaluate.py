"""The rows of an evaluation, and that each number belongs to its pipeline."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io.wavfile
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import ldpruner
from ldpruner.errors import EvaluationError, LdPrunerError, NonFiniteLatents
from ldpruner.evaluation import evaluate as evaluation
from ldpruner.evaluation.evaluate import COSTS, METRICS, PAIRED, Evaluation, evaluate
from ldpruner.evaluation.features import LatentFeatures
from ldpruner.evaluation.media import find_media
from ldpruner.evaluation.metrics import frechet_distance
from ldpruner.evaluation.samples import SampleBatch, read_samples, sample_batch
from ldpruner.operators.discovery import Removal
from ldpruner.pipelines.sampling import sample_latents
from ldpruner.profiling import benchmark as bench
from ldpruner.scoring.importance import Floats
from ldpruner.selection.plan import PlannedRemoval
from tests.families import FAMILIES

PROBE = ldpruner.Probe(samples=8, steps=2)
SHIFTED = [PROBE.replace(seed=seed) for seed in (1, 2)]
NO_COSTS = tuple(name for name in METRICS if name not in COSTS)
LATENT_ONLY = ("frechet_distance", "kid", "precision", "recall", "latent_shift", "latent_distance")


class Colours:
    """The mean colour of each picture: a custom extractor."""

    name = "colours"

    def __call__(self, batch: SampleBatch) -> Floats:
        assert batch.pictures is not None
        return np.asarray(batch.pictures.mean((1, 2, 3)))

    def probabilities(self, features: Floats) -> Floats:
        return np.asarray(features / features.sum(1, keepdims=True))


@pytest.fixture(scope="module")
def satellite() -> DiffusionPipeline:
    return ldpruner.load("zoo:satellite")


@pytest.fixture(scope="module")
def pruned(satellite: DiffusionPipeline) -> DiffusionPipeline:
    removed = (PlannedRemoval(removal=Removal(operator="mid_block.resnets.0", modification="identity")),)
    return ldpruner.prune(satellite, ldpruner.Plan(removed=removed))


@pytest.fixture(scope="module")
def result(satellite: DiffusionPipeline, pruned: DiffusionPipeline) -> Iterator[Evaluation]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "compare", functools.partial(bench.compare, rounds=2))
        yield evaluate(pruned, satellite, PROBE)


def latents(pipeline: DiffusionPipeline, probe: ldpruner.Probe) -> Floats:
    return np.asarray(sample_latents(pipeline, probe, range(8)).double().numpy())


def test_everything_that_applies_is_measured_in_the_order_of_the_names(result: Evaluation) -> None:
    absent = {"clip_score", "inception_score"}
    assert [row.metric for row in result.metrics] == [name for name in METRICS if name not in absent]


def test_its_json_is_rows_and_the_protocol(result: Evaluation) -> None:
    answer = json.loads(json.dumps(result.model_dump(mode="json"), allow_nan=False))
    assert set(answer) == {"metrics", "protocol"}
    for row in answer["metrics"]:
        assert set(row) == {"metric", "original", "pruned", "interval", "interval_type", "noise_floor"}
    assert Evaluation.model_validate(answer) == result


@pytest.mark.case(name="interval-types")
def test_intervals_contain_their_values_and_all_but_costs_have_a_noise_floor_and_a_verdict(result: Evaluation) -> None:
    for row in result.metrics:
        assert row.pruned is not None
        assert row.interval is None or row.interval[0] <= row.pruned <= row.interval[1], row.metric
        assert row.interval_type == (
            "percentiles" if row.metric.startswith("latency") else row.interval and "confidence"
        )
        assert (row.noise_floor is None) == (row.within_noise_floor is None) == (row.metric in COSTS), row.metric
        assert (row.original is None) == (row.metric in PAIRED), row.metric
    assert set(result.worse) == {row.metric for row in result.metrics if row.within_noise_floor is False}


def test_distances_are_those_of_the_latents_that_the_pipelines_sample(
    result: Evaluation, satellite: DiffusionPipeline, pruned: DiffusionPipeline
) -> None:
    original, other = (latents(satellite, probe) for probe in SHIFTED)
    ours = latents(pruned, SHIFTED[0])

    def score(z: Floats, z2: Floats) -> float:
        return float(np.linalg.norm(z.mean(0) - z2.mean(0)) + np.linalg.norm(z.std(0) - z2.std(0)))

    assert result["latent_shift"].pruned == pytest.approx(score(original, ours), rel=1e-4)
    assert result["latent_shift"].noise_floor == pytest.approx(score(original, other), rel=1e-4)
    apart = np.sqrt(np.square(ours - original).mean((1, 2, 3)))
    assert result["latent_distance"].pruned == pytest.approx(apart.mean(), rel=1e-4)
    features = [LatentFeatures()(SampleBatch(latents=array)) for array in (original, other, ours)]
    row = result["frechet_distance"]
    assert row.pruned == pytest.approx(frechet_distance(features[2], features[1]).value, rel=1e-4)
    assert row.original == row.noise_floor
    assert row.noise_floor == pytest.approx(frechet_distance(features[0], features[1]).value, rel=1e-4)


def test_costs_are_those_of_the_two_denoisers(
    result: Evaluation, satellite: DiffusionPipeline, pruned: DiffusionPipeline
) -> None:
    row = result["parameters"]
    sizes = [sum(weight.numel() for weight in part.unet.parameters()) for part in (satellite, pruned)]
    assert [row.original, row.pruned] == sizes
    assert sizes[1] < sizes[0]
    assert result["latency_ratio"].original == 1


def test_the_protocol_names_seeds_reference_features_and_versions(result: Evaluation) -> None:
    protocol = result.protocol
    assert protocol["probe"]["samples"] == protocol["samples"] == 8
    assert protocol["seeds"] == {"samples": 1, "noise_floor": 2}
    assert protocol["features"] == "latents"
    assert protocol["reference"] == {"samples": 8, "folder": None, "digest": None}
    assert {"ld-pruner", "torch", "diffusers", "torchmetrics"} <= set(protocol["versions"])


def test_a_pipeline_beside_itself_is_within_every_noise_floor(satellite: DiffusionPipeline) -> None:
    itself = evaluate(satellite, satellite, PROBE, metrics=NO_COSTS)
    assert all(row.pruned == row.original for row in itself.metrics if row.metric not in PAIRED)
    assert all(row.within_noise_floor for row in itself.metrics)
    assert itself.worse == ()
    assert itself["latent_shift"].pruned == 0
    assert itself["latent_shift"].interval == (0, 0)
    assert itself["psnr"].pruned == pytest.approx(58.92, abs=0.01)
    assert itself["ssim"].pruned == pytest.approx(1)


def test_nothing_is_decoded_for_latents_alone(satellite: DiffusionPipeline, pruned: DiffusionPipeline) -> None:
    calls: list[int] = []
    handle = satellite.vqvae.decoder.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        latent_only = evaluate(pruned, satellite, PROBE, metrics=LATENT_ONLY)
    finally:
        handle.remove()
    assert calls == []
    assert not latent_only.protocol["decoded"]
    assert tuple(row.metric for row in latent_only.metrics) == LATENT_ONLY


def test_the_pruned_pipeline_samples_once_and_the_original_twice(
    satellite: DiffusionPipeline, pruned: DiffusionPipeline
) -> None:
    rows: dict[str, int] = {"original": 0, "pruned": 0}

    def counts(name: str) -> Any:
        def count(_: Any, arguments: Any) -> None:
            rows[name] += len(arguments[0])

        return count

    handles = [
        part.unet.register_forward_pre_hook(counts(name))
        for name, part in (("original", satellite), ("pruned", pruned))
    ]
    try:
        evaluate(pruned, satellite, PROBE, metrics=NO_COSTS)
    finally:
        for handle in handles:
            handle.remove()
    assert rows["pruned"] == 8 * 2
    assert rows["original"] == 2 * 8 * 2 + 4 * 2  # the last to check that batches are safe


def test_samples_are_compared_with_real_pictures_in_custom_features(
    satellite: DiffusionPipeline, pruned: DiffusionPipeline, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    for index in range(6):
        picture = random.integers(0, 256, (40 + index, 60, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    (tmp_path / "readme.txt").write_text("no picture")
    against_data = evaluate(pruned, satellite, PROBE, data=tmp_path, features=Colours(), metrics=NO_COSTS)
    folder = find_media(tmp_path)
    example = sample_batch(satellite, SHIFTED[0], range(8))
    real = Colours()(read_samples(folder.files, example))
    row = against_data["frechet_distance"]
    assert row.original == pytest.approx(frechet_distance(Colours()(example), real).value, rel=1e-3)
    assert row.noise_floor is not None
    assert row.original is not None
    assert row.noise_floor < row.original
    assert against_data["inception_score"].pruned is not None
    assert against_data.protocol["reference"] == {"samples": 6, "folder": str(tmp_path), "digest": folder.digest}


@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize(("name", "rows"), [("stable-audio", set()), ("wan", {"psnr", "ssim"})])
def test_sounds_and_videos_are_compared(name: str, rows: set[str]) -> None:
    family = FAMILIES[name]
    pipeline = family.pipeline()
    probe = ldpruner.Probe(samples=5, steps=2, prompts=("a red cat", "the sea"), call=dict(family.call))
    itself = evaluate(pipeline, pipeline, probe, metrics=("latent_shift", "frechet_distance", "psnr", "ssim"))
    assert {row.metric for row in itself.metrics} == {"latent_shift", "frechet_distance"} | rows
    batch = sample_batch(pipeline, probe, [0, 1])
    assert batch.prompts == ("a red cat", "the sea")
    if batch.pictures is None:
        assert batch.sounds is not None
        assert batch.sampling_rate == pipeline.vae.config.sampling_rate
    else:
        assert batch.pictures.shape[1] > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probe": ldpruner.Probe(samples=4)}, "4 samples are too few"),
        ({"metrics": ("fid",)}, "metric 'fid' does not exist; did you mean 'kid'"),
        ({"data": "nowhere"}, "have no latents"),
        ({"data": "nowhere", "features": Colours()}, "no pictures or sounds in 'nowhere'"),
        ({"features": "nowhere"}, "no feature network at 'nowhere'"),
        ({"clip": "nowhere"}, "takes no prompts"),
    ],
)
def test_wrong_settings_raise_in_one_line_before_anything_is_sampled(
    tiny: DiffusionPipeline, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldpruner.evaluation.evaluate.sample_batch", None)
    with pytest.raises(LdPrunerError, match=message) as caught:
        evaluate(tiny, tiny, **settings)
    assert "\n" not in str(caught.value)


def test_files_of_another_kind_than_the_samples_are_refused(tiny: DiffusionPipeline, tmp_path: Path) -> None:
    for name in "abcde":
        scipy.io.wavfile.write(tmp_path / f"{name}.wav", 8000, np.zeros(100, dtype=np.int16))
    with pytest.raises(EvaluationError, match="holds sounds, but the pipeline samples none"):
        evaluate(tiny, tiny, PROBE, data=tmp_path, features=Colours(), metrics=("frechet_distance",))


def test_a_pipeline_of_another_latent_shape_is_refused(tiny: DiffusionPipeline, satellite: DiffusionPipeline) -> None:
    with pytest.raises(EvaluationError, match="give a pipeline and what was pruned of it"):
        evaluate(tiny, satellite, PROBE, metrics=LATENT_ONLY)


def test_latents_that_are_not_finite_are_refused(fresh: DiffusionPipeline, tiny: DiffusionPipeline) -> None:
    torch.nn.init.constant_(fresh.unet.conv_out.bias, float("nan"))
    with pytest.raises(NonFiniteLatents, match="not finite"):
        evaluate(fresh, tiny, PROBE, metrics=LATENT_ONLY)


def test_without_torchmetrics_only_ssim_is_missing(
    satellite: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldpruner.evaluation.evaluate.find_spec", lambda name: None)
    itself = evaluate(satellite, satellite, ldpruner.Probe(samples=6, steps=2))
    assert {row.metric for row in itself.metrics} == set(METRICS) - {"ssim", "clip_score", "inception_score"}
