"""The bundled model: its scores are correct, and pruning it saves what the plan predicts."""

import functools
import math
from pathlib import Path

import numpy as np
import pytest
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.operators.patching import modified
from ldpruner.pipelines.sampling import sample_latents
from ldpruner.profiling.benchmark import compare
from ldpruner.pruning.fit import prune_to_budget
from ldpruner.scoring.results import Scores

pytestmark = pytest.mark.extensive

PROBE = ldpruner.Probe(samples=3, steps=2)
LARGE = 200_000  # MACs of operators whose removal saves measurable time
NOISE = 0.15  # of a latency, on a shared machine
RESOLUTION = 3e-6  # of a score in float32: kernels for other batches round differently, and latents have a norm of 16

# on all samples, as in the paper
score_all = functools.partial(ldpruner.score_operators, budgets=None)


@pytest.fixture(scope="module")
def satellite() -> DiffusionPipeline:
    return ldpruner.load("zoo:satellite")


@pytest.fixture(scope="module")
def scores(satellite: DiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Scores:
    folder = tmp_path_factory.mktemp("satellite")
    return score_all(satellite, None, PROBE, run=folder)


def latents(pipeline: DiffusionPipeline) -> np.ndarray:
    return sample_latents(pipeline, PROBE, range(PROBE.samples)).numpy().astype(np.float64)


def test_every_score_agrees_with_the_formula_in_numpy(satellite: DiffusionPipeline, scores: Scores) -> None:
    baseline = latents(satellite)
    for score in scores.scores[::3]:
        with modified(satellite.unet, [score.candidate.removal]):
            moved = latents(satellite)
        means = np.sqrt(((baseline.mean(axis=0) - moved.mean(axis=0)) ** 2).sum())
        deviations = np.sqrt(((baseline.std(axis=0) - moved.std(axis=0)) ** 2).sum())
        assert score.score == pytest.approx(means + deviations, rel=1e-5, abs=1e-5), score.operator


def test_scores_do_not_depend_on_the_batch(satellite: DiffusionPipeline) -> None:
    operators = ldpruner.find_operators(satellite)[::40]
    probe = ldpruner.Probe(samples=64, steps=2)
    runs = [score_all(satellite, operators, probe, batch_size=batch).scores for batch in (1, 7, 64)]
    first, *others = ([score.score for score in scores] for scores in runs)
    for values in others:
        assert values == pytest.approx(first, rel=1e-4, abs=RESOLUTION)


def test_scores_do_not_depend_on_the_order(satellite: DiffusionPipeline, scores: Scores) -> None:
    operators = ldpruner.find_operators(satellite)[::10]
    backwards = score_all(satellite, operators[::-1], PROBE)
    values = {(score.operator, score.modification): score.score for score in scores.scores}
    assert all(score.score == values[score.operator, score.modification] for score in backwards.scores)


def test_a_third_of_the_measured_latency_can_be_cut(satellite: DiffusionPipeline, tmp_path: Path) -> None:
    probe = ldpruner.Probe(samples=1, steps=6)  # decoding, which no plan touches, is a small part of six steps
    large = [operator for operator in ldpruner.find_operators(satellite) if operator.macs > LARGE]
    scores = score_all(satellite, large, probe)
    pruned, plan = prune_to_budget(satellite, scores, ldpruner.Budget(latency=0.65), run=tmp_path, provenance={})
    assert plan.predicted is not None
    # A busy machine slows some timings; a plan that was predicted wrongly misses every time.
    ratios = [compare({"original": satellite, "pruned": pruned}, probe, rounds=5).ratio for _ in range(3)]
    assert min(ratios) <= 0.65 * (1 + NOISE)
    assert min(abs(plan.predicted.latency / ratio - 1) for ratio in ratios) <= NOISE
    ldpruner.save(pruned, tmp_path / "pruned")
    opened = ldpruner.load(tmp_path / "pruned")
    assert np.array_equal(latents(opened), latents(pruned))


def test_the_removed_weights_are_gone_from_memory_and_disk(
    satellite: DiffusionPipeline, scores: Scores, tmp_path: Path
) -> None:
    plan = ldpruner.select(scores, ldpruner.Budget(parameters=0.6))
    assert plan.predicted is not None
    pruned = ldpruner.prune(satellite, plan)
    sizes = [sum(weight.numel() for weight in pipeline.unet.parameters()) for pipeline in (satellite, pruned)]
    assert sizes[1] / sizes[0] == pytest.approx(plan.predicted.parameters)
    for name, pipeline in (("original", satellite), ("pruned", pruned)):
        ldpruner.save(pipeline, tmp_path / name)
    (before,), (after,) = (list((tmp_path / name / "unet").glob("*.safetensors")) for name in ("original", "pruned"))
    assert after.stat().st_size / before.stat().st_size == pytest.approx(plan.predicted.parameters, abs=0.01)


def test_no_score_of_a_working_model_is_infinite(scores: Scores) -> None:
    assert all(math.isfinite(score.score) for score in scores.scores)
