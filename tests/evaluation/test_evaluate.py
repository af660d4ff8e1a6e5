"""A pruned pipeline beside its original: what is in the rows, and that each number is the pipelines' own."""

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
from ldpruner.errors import DataError, EvaluationError, LdPrunerError, NonFiniteLatents
from ldpruner.evaluation import evaluate as evaluation
from ldpruner.evaluation.drawn import SampleBatch, draw, read_samples
from ldpruner.evaluation.evaluate import COSTS, METRICS, Evaluation, evaluate
from ldpruner.evaluation.features import LatentFeatures
from ldpruner.evaluation.media import find_media
from ldpruner.pipelines.sampling import draw_latents
from ldpruner.profiling import benchmark as bench
from ldpruner.scoring.importance import Floats, frechet_distance
from ldpruner.selection.plan import PlannedRemoval
from tests.families import FAMILIES

PROBE = ldpruner.Probe(samples=8, steps=2)
SHIFTED = [PROBE.model_copy(update={"seed": seed}) for seed in (1, 2)]
NO_COSTS = tuple(name for name in METRICS if name not in COSTS)
LATENT_ONLY = ("latent_score", "frechet_distance", "kid", "precision", "recall", "latent_distance")


class Colours:
    """The mean colour of each picture: an extractor of one's own."""

    name = "colours"

    def __call__(self, drawn: SampleBatch) -> Floats:
        assert drawn.pictures is not None
        return np.asarray(drawn.pictures.mean((1, 2, 3)))

    def probabilities(self, features: Floats) -> Floats:
        return np.asarray(features / features.sum(1, keepdims=True))


@pytest.fixture(scope="module")
def satellite() -> DiffusionPipeline:
    return ldpruner.load("zoo:satellite")


@pytest.fixture(scope="module")
def pruned(satellite: DiffusionPipeline) -> DiffusionPipeline:
    removed = (PlannedRemoval(operator="mid_block.resnets.0", modification="identity"),)
    return ldpruner.prune(satellite, ldpruner.Plan(removed=removed))


@pytest.fixture(scope="module")
def result(satellite: DiffusionPipeline, pruned: DiffusionPipeline) -> Iterator[Evaluation]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "compare", functools.partial(bench.compare, rounds=2))
        yield evaluate(pruned, satellite, PROBE)


def latents(pipeline: DiffusionPipeline, probe: ldpruner.Probe) -> Floats:
    return np.asarray(draw_latents(pipeline, probe, range(8)).double().numpy())


def test_everything_that_applies_is_measured_in_the_order_of_the_names(result: Evaluation) -> None:
    absent = {"clip_score", "inception_score"}
    assert [row.metric for row in result.metrics] == [name for name in METRICS if name not in absent]


def test_its_json_is_rows_and_the_protocol(result: Evaluation) -> None:
    found = json.loads(json.dumps(result.model_dump(mode="json"), allow_nan=False))
    assert set(found) == {"metrics", "protocol"}
    for row in found["metrics"]:
        assert set(row) == {"metric", "original", "pruned", "interval", "noise_floor"}
    assert Evaluation.model_validate(found) == result


def test_every_interval_holds_its_value_and_every_distance_has_a_noise_floor(result: Evaluation) -> None:
    for row in result.metrics:
        assert row.pruned is not None
        assert row.interval is None or row.interval[0] <= row.pruned <= row.interval[1], row.metric
        assert (row.noise_floor is None) == (row.metric in COSTS), row.metric


def test_distances_are_of_the_latents_that_the_pipelines_draw(
    result: Evaluation, satellite: DiffusionPipeline, pruned: DiffusionPipeline
) -> None:
    original, other = (latents(satellite, probe) for probe in SHIFTED)
    moved = latents(pruned, SHIFTED[0])

    def score(z: Floats, z2: Floats) -> float:
        return float(np.linalg.norm(z.mean(0) - z2.mean(0)) + np.linalg.norm(z.std(0) - z2.std(0)))

    assert result["latent_score"].pruned == pytest.approx(score(original, moved), rel=1e-4)
    assert result["latent_score"].noise_floor == pytest.approx(score(original, other), rel=1e-4)
    apart = np.sqrt(np.square(moved - original).mean((1, 2, 3)))
    assert result["latent_distance"].pruned == pytest.approx(apart.mean(), rel=1e-4)
    assert result["latent_distance"].original == 0
    features = [LatentFeatures()(SampleBatch(latents=one)) for one in (original, other, moved)]
    row = result["frechet_distance"]
    assert row.pruned == pytest.approx(frechet_distance(features[2], features[1]), rel=1e-4)
    assert row.original == row.noise_floor
    assert row.noise_floor == pytest.approx(frechet_distance(features[0], features[1]), rel=1e-4)


def test_costs_are_those_of_the_two_denoisers(
    result: Evaluation, satellite: DiffusionPipeline, pruned: DiffusionPipeline
) -> None:
    row = result["parameters"]
    sizes = [sum(weight.numel() for weight in one.unet.parameters()) for one in (satellite, pruned)]
    assert [row.original, row.pruned] == sizes
    assert sizes[1] < sizes[0]
    assert result["latency_ratio"].original == 1


def test_the_protocol_says_what_was_done(result: Evaluation) -> None:
    protocol = result.protocol
    assert protocol["probe"]["samples"] == protocol["samples"] == 8
    assert protocol["seeds"] == {"samples": 1, "noise_floor": 2}
    assert protocol["features"] == "latents"
    assert protocol["reference"] == {"samples": 8, "folder": None, "digest": None}
    assert {"ld-pruner", "torch", "diffusers", "torchmetrics"} <= set(protocol["versions"])


def test_a_pipeline_beside_itself_is_as_good_as_itself(satellite: DiffusionPipeline) -> None:
    found = evaluate(satellite, satellite, PROBE, metrics=NO_COSTS)
    assert all(row.pruned == row.original for row in found.metrics)
    assert found["latent_score"].pruned == 0
    assert found["latent_score"].interval == (0, 0)
    assert found["psnr"].pruned == pytest.approx(58.92, abs=0.01)
    assert found["ssim"].pruned == pytest.approx(1)


def test_nothing_is_decoded_for_latents_alone(satellite: DiffusionPipeline, pruned: DiffusionPipeline) -> None:
    calls: list[int] = []
    handle = satellite.vqvae.decoder.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        found = evaluate(pruned, satellite, PROBE, metrics=LATENT_ONLY)
    finally:
        handle.remove()
    assert calls == []
    assert not found.protocol["decoded"]
    assert tuple(row.metric for row in found.metrics) == LATENT_ONLY


def test_each_sample_is_drawn_once_by_the_pruned_and_twice_by_the_original(
    satellite: DiffusionPipeline, pruned: DiffusionPipeline
) -> None:
    rows: dict[str, int] = {"original": 0, "pruned": 0}

    def counts(name: str) -> Any:
        def count(_: Any, arguments: Any) -> None:
            rows[name] += len(arguments[0])

        return count

    handles = [
        one.unet.register_forward_pre_hook(counts(name)) for name, one in (("original", satellite), ("pruned", pruned))
    ]
    try:
        evaluate(pruned, satellite, PROBE, metrics=NO_COSTS)
    finally:
        for handle in handles:
            handle.remove()
    assert rows["pruned"] == 8 * 2
    assert rows["original"] == 2 * 8 * 2 + 4 * 2  # the last to see whether batches are safe


def test_decoded_samples_have_the_latents_that_they_are_decoded_from(satellite: DiffusionPipeline) -> None:
    drawn = draw(satellite, PROBE, range(3))
    assert drawn.pictures is not None
    assert drawn.pictures.shape == (3, 1, 64, 64, 3)
    assert drawn.latents is not None
    np.testing.assert_array_equal(drawn.latents, draw_latents(satellite, PROBE, range(3)).double().numpy())


def test_real_pictures_are_compared_with_in_features_of_ones_own(
    satellite: DiffusionPipeline, pruned: DiffusionPipeline, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    for index in range(6):
        picture = random.integers(0, 256, (40 + index, 60, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    (tmp_path / "readme.txt").write_text("no picture")
    found = evaluate(pruned, satellite, PROBE, data=tmp_path, features=Colours(), metrics=NO_COSTS)
    folder = find_media(tmp_path)
    example = draw(satellite, SHIFTED[0], range(8))
    real = Colours()(read_samples(folder.files, example))
    row = found["frechet_distance"]
    assert row.original == pytest.approx(frechet_distance(Colours()(example), real), rel=1e-3)
    assert row.noise_floor is not None
    assert row.original is not None
    assert row.noise_floor < row.original
    assert found["inception_score"].pruned is not None
    assert found.protocol["reference"] == {"samples": 6, "folder": str(tmp_path), "digest": folder.digest}


def test_real_pictures_are_cut_and_scaled_to_drawn_ones(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, 20:40] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    like = SampleBatch(pictures=np.zeros((1, 1, 10, 10, 3), dtype=np.uint8))
    read = read_samples(find_media(tmp_path).files, like)
    assert read.pictures is not None
    assert read.pictures.shape == (1, 1, 10, 10, 3)
    assert (read.pictures[0, 0, :, 3:7] == 200).all()
    assert read.pictures.min() > 180  # what is cut off is black


def test_a_folder_has_another_digest_when_a_file_changes(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    before = find_media(tmp_path).digest
    assert find_media(tmp_path).digest == before
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    assert find_media(tmp_path).digest != before


def test_sounds_are_read_at_the_rate_and_cut_to_the_length_of_drawn_ones(tmp_path: Path) -> None:
    wave = np.sin(2 * np.pi * 200 * np.arange(16000) / 16000)
    scipy.io.wavfile.write(tmp_path / "a.wav", 16000, (wave * 32767).astype(np.int16))
    like = SampleBatch(sounds=(np.zeros((1, 6000)),), sampling_rate=8000)
    read = read_samples(find_media(tmp_path).files, like)
    assert read.sounds is not None
    expected = np.sin(2 * np.pi * 200 * np.arange(6000) / 8000)
    assert read.sounds[0].shape == (1, 6000)
    np.testing.assert_allclose(read.sounds[0][0, 100:-100], expected[100:-100], atol=0.01)


@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize(("name", "rows"), [("stable-audio", set()), ("wan", {"psnr", "ssim"})])
def test_sounds_and_videos_are_compared_too(name: str, rows: set[str]) -> None:
    family = FAMILIES[name]
    pipeline = family.pipeline()
    probe = ldpruner.Probe(samples=5, steps=2, prompts=("a red cat", "the sea"), call=dict(family.call))
    found = evaluate(pipeline, pipeline, probe, metrics=("latent_score", "frechet_distance", "psnr", "ssim"))
    assert {row.metric for row in found.metrics} == {"latent_score", "frechet_distance"} | rows
    drawn = draw(pipeline, probe, [0, 1])
    assert drawn.prompts == ("a red cat", "the sea")
    if drawn.pictures is None:
        assert drawn.sounds is not None
        assert drawn.sampling_rate == pipeline.vae.config.sampling_rate
    else:
        assert drawn.pictures.shape[1] > 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"probe": ldpruner.Probe(samples=4)}, "4 samples are too few"),
        ({"metrics": ("fid",)}, "no metric 'fid'"),
        ({"data": "nowhere"}, "have no latents"),
        ({"data": "nowhere", "features": Colours()}, "no pictures or sounds in 'nowhere'"),
        ({"features": "nowhere"}, "no feature network at 'nowhere'"),
        ({"clip": "nowhere"}, "takes no prompts"),
    ],
)
def test_what_cannot_be_is_told_in_one_line_before_anything_is_drawn(
    tiny: DiffusionPipeline, settings: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldpruner.evaluation.observations.draw", None)
    with pytest.raises(LdPrunerError, match=said) as caught:
        evaluate(tiny, tiny, **settings)
    assert "\n" not in str(caught.value)


def test_files_of_another_kind_than_what_is_drawn_are_told(tiny: DiffusionPipeline, tmp_path: Path) -> None:
    scipy.io.wavfile.write(tmp_path / "a.wav", 8000, np.zeros(100, dtype=np.int16))
    with pytest.raises(EvaluationError, match="holds sounds, but the pipeline draws none"):
        evaluate(tiny, tiny, PROBE, data=tmp_path, features=Colours(), metrics=("frechet_distance",))


def test_a_broken_picture_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    like = SampleBatch(pictures=np.zeros((1, 1, 10, 10, 3), dtype=np.uint8))
    with pytest.raises(DataError, match="cannot read"):
        read_samples(find_media(tmp_path).files, like)


def test_another_pipeline_than_the_pruned_one_is_told(tiny: DiffusionPipeline, satellite: DiffusionPipeline) -> None:
    with pytest.raises(EvaluationError, match="give a pipeline and what was pruned of it"):
        evaluate(tiny, satellite, PROBE, metrics=LATENT_ONLY)


def test_latents_that_are_not_finite_are_told(fresh: DiffusionPipeline, tiny: DiffusionPipeline) -> None:
    torch.nn.init.constant_(fresh.unet.conv_out.bias, float("nan"))
    with pytest.raises(NonFiniteLatents, match="not finite"):
        evaluate(fresh, tiny, PROBE, metrics=LATENT_ONLY)


def test_without_torchmetrics_all_else_is_measured(
    satellite: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldpruner.evaluation.evaluate.find_spec", lambda name: None)
    found = evaluate(satellite, satellite, ldpruner.Probe(samples=6, steps=2))
    assert {row.metric for row in found.metrics} == set(METRICS) - {"ssim", "clip_score", "inception_score"}
