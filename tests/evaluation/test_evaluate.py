"""The rows of an evaluation, and that each number belongs to its pipeline."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import ldpruner
from ldpruner.errors import LdPrunerError
from ldpruner.evaluation import evaluate as evaluation
from ldpruner.evaluation.evaluate import Evaluation, evaluate
from ldpruner.evaluation.features import LatentFeatures
from ldpruner.evaluation.measures import COSTS, METRICS, PAIRED
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
ABSENT = {"clip_score", "cmmd", "inception_score", "dino_distance", "lpips"}  # without their networks
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
    assert [row.metric for row in result.metrics] == [name for name in METRICS if name not in ABSENT]


def test_its_json_is_rows_and_the_protocol(result: Evaluation) -> None:
    answer = json.loads(json.dumps(result.model_dump(mode="json"), allow_nan=False))
    assert set(answer) == {"metrics", "by_category", "protocol"}
    fields = {"metric", "original", "pruned", "interval", "interval_type", "noise_floor"}
    for row in answer["metrics"]:
        assert set(row) == fields | {"higher_is_better", "difference", "difference_interval"}
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
        ({"clip": "nowhere"}, "no feature network at 'nowhere'"),
        ({"scorers": ["nowhere"]}, "write it as module:function"),
        ({"metrics": ()}, "give a list of them; accepted: latency_ms"),
    ],
)
def test_wrong_settings_raise_in_one_line_before_anything_is_sampled(
    tiny: DiffusionPipeline, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldpruner.evaluation.observer.sample_batch", None)
    with pytest.raises(LdPrunerError, match=message) as caught:
        evaluate(tiny, tiny, **settings)
    assert "\n" not in str(caught.value)


class Brightness:
    """A scorer, and the batches that it has seen."""

    lower_is_better = True

    def __init__(self) -> None:
        self.batches: list[tuple[int, Any]] = []

    def __call__(self, samples: list[Image.Image], prompts: list[str] | None) -> torch.Tensor:
        self.batches.append((len(samples), prompts))
        return torch.tensor([float(np.asarray(sample).mean()) for sample in samples])


def test_a_scorer_sees_both_pipelines_at_the_same_seeds_batch_by_batch(
    tiny: DiffusionPipeline, fresh: DiffusionPipeline
) -> None:
    torch.nn.init.constant_(fresh.unet.conv_out.bias, 0.5)
    scorer = Brightness()
    scored = evaluate(fresh, tiny, PROBE, metrics=(), scorers=[scorer], batch_size=3)
    (row,) = scored.metrics
    levels = []
    for pipeline, probe in ((tiny, SHIFTED[0]), (tiny, SHIFTED[1]), (fresh, SHIFTED[0])):
        batch = sample_batch(pipeline, probe, range(8))
        assert batch.pictures is not None
        levels.append(batch.pictures.mean((1, 2, 3, 4)))
    original, other, ours = levels
    assert scorer.batches == [(size, None) for size in (3, 3, 3, 3, 3, 3, 2, 2, 2)]
    assert [row.original, row.noise_floor, row.pruned] == pytest.approx(
        [levels.mean() for levels in (original, other, ours)], rel=1e-3
    )
    assert row.difference == pytest.approx((ours - original).mean(), abs=0.05)
    assert row.metric == "tests.evaluation.test_evaluate:Brightness"
    assert scored.protocol["scorers"] == [row.metric]
    assert not row.higher_is_better
    assert (row.metric in scored.worse) == (row.difference_interval is not None and row.difference_interval[0] > 0)


def test_scores_and_distances_are_given_by_category_of_the_prompts(
    tiny_text: DiffusionPipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "p.csv").write_text("Prompts,Category\na cat,Animals\nthe sea,Places\na dog,Animals\n")
    probe = ldpruner.Probe(samples=10, steps=1, prompts=tmp_path / "p.csv")

    def letters(samples: list[Any], prompts: list[str] | None) -> list[int]:
        assert prompts is not None
        return list(map(len, prompts))

    result = evaluate(tiny_text, tiny_text, probe, metrics=("psnr", "frechet_distance"), scorers=[letters])
    assert {name: [row.metric for row in rows] for name, rows in result.by_category.items()} == {
        name: [f"{__name__}:{letters.__qualname__}", "psnr"] for name in ("Animals", "Places")
    }
    animals, places = (rows[0] for rows in result.by_category.values())
    assert (animals.pruned, places.pruned) == (5, 7)
    assert result.protocol["probe"]["categories"] == ["Animals", "Places", "Animals"]
    assert Evaluation.model_validate(json.loads(json.dumps(result.model_dump(mode="json")))) == result
    assert "leave out categories" not in caplog.text
    with pytest.raises(LdPrunerError, match="raises ValueError: no"), caplog.at_level("WARNING"):
        evaluate(
            tiny_text, tiny_text, probe.replace(samples=5, prompts=("a",) * 6, categories=("b",) * 6), scorers=[_no]
        )
    assert "5 samples take the first 5 of 6 prompts, and leave out categories of the others" in caplog.text


def _no(samples: Any, prompts: Any) -> Any:
    raise ValueError("no")


def test_without_torchmetrics_only_ssim_is_missing(
    satellite: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldpruner.evaluation.evaluate.find_spec", lambda name: None)
    itself = evaluate(satellite, satellite, ldpruner.Probe(samples=6, steps=2))
    assert {row.metric for row in itself.metrics} == set(METRICS) - {"ssim", *ABSENT}
