"""What else makes an original faster is measured like a pruned pipeline."""

from pathlib import Path

import pytest
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.alternatives import evaluate_alternatives, steps_within
from ldpruner.errors import RunStoreError
from ldpruner.pipelines.running import networks
from ldpruner.profiling.benchmark import Percentiles
from ldpruner.pruning.opening import open_pipeline
from ldpruner.run_folder import RunFolder
from ldpruner.workflow import run as run_all
from ldpruner.workflow import score_run
from tests.families import FAMILIES
from tests.publishing.conftest import finished, run

__all__ = ["finished", "run"]
FEW = ldpruner.Probe(samples=5, steps=4)


def test_fewer_steps_fit_into_the_latency_of_the_run(run: Path) -> None:
    folder = RunFolder(run)
    comparison = folder.comparison()
    assert comparison is not None
    share = Percentiles(median=0.65, p10=0.65, p90=0.65)  # of four steps, nearer to three than to two
    folder.write_comparison(comparison.replace(latency_ratio=share))
    original = open_pipeline(folder.model(), "cpu")
    before = [weight.detach().clone() for weight in networks(original)["unet"].parameters()]
    measured = evaluate_alternatives(run, probe=FEW, original=original)
    assert [alternative.name for alternative in measured] == ["2 of 4 steps", "int8 weights"]
    steps, int8 = (alternative.evaluation for alternative in measured)
    assert steps.protocol["steps"] == 2
    assert steps["latency_ratio"].pruned is not None
    assert steps["latency_ratio"].pruned < 1
    for evaluation in (steps, int8):
        distance = evaluation["latent_distance"].pruned
        assert distance is not None
        assert distance > 0
    assert folder.alternatives() == measured
    after = networks(original)["unet"].parameters()  # the original has float weights and no cache
    assert all((one == other).all() for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("steps", "ratio", "fitting"), [(10, 0.35, 3), (10, 0.5, 5), (10, 1 - 0.8, 2), (25, 0.01, 1), (4, 1.0, 4)]
)
def test_steps_are_rounded_down(steps: int, ratio: float, fitting: int) -> None:
    assert steps_within(steps, ratio) == fitting


@pytest.mark.extensive
@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_a_transformer_has_a_cache(tmp_path: Path) -> None:
    family = FAMILIES["flux"]
    probe = ldpruner.Probe(samples=2, steps=4, call=dict(family.call))
    pipeline: DiffusionPipeline = family.pipeline()
    run_all(pipeline, ldpruner.Budget(operators=1), run=tmp_path, probe=probe, model="flux")
    measured = evaluate_alternatives(tmp_path, probe=probe.replace(samples=5), original=pipeline)
    assert "FirstBlockCache, threshold 0.1" in [alternative.name for alternative in measured]
    assert not networks(pipeline)["transformer"].is_cache_enabled


def test_without_a_latency_it_is_one_line(tiny: DiffusionPipeline, tmp_path: Path) -> None:
    score_run(tiny, run=tmp_path, probe=ldpruner.Probe(samples=2, steps=2), model="tiny")
    with pytest.raises(RunStoreError, match="was not timed; do it with 'ldpruner evaluate"):
        evaluate_alternatives(tmp_path, probe=FEW, original=tiny)
