"""A pruned pipeline is recovered until it is good enough, and how good it was is kept."""

from pathlib import Path

import pytest
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.errors import FinetuningError
from ldpruner.evaluation.evaluate import Evaluation
from ldpruner.evaluation.gallery import read_gallery
from ldpruner.recovery import Goal, finetune_run, parse_goal
from ldpruner.run_folder import RunFolder
from ldpruner.workflow import prune_run, score_run, select_run
from tests.finetuning.conftest import PROBE, short
from tests.publishing.conftest import finished, run

__all__ = ["finished", "run"]


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("frechet_distance<=original", Goal(metric="frechet_distance", higher_is_better=False, limit=None)),
        ("ssim >= 0.9", Goal(metric="ssim", higher_is_better=True, limit=0.9)),
    ],
)
def test_a_goal_is_read(text: str, goal: Goal) -> None:
    assert parse_goal(text) == goal


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("better", "until='better': give METRIC<=VALUE"),
        ("ssim<=good", "until='ssim<=good': give METRIC<=VALUE"),
        ("frechet<=original", "metric 'frechet' does not exist"),
    ],
)
def test_what_is_no_goal_is_refused(text: str, message: str) -> None:
    with pytest.raises(FinetuningError, match=message):
        parse_goal(text)


def evaluated(**measure: float | None) -> Evaluation:
    return Evaluation.model_validate({"metrics": [{"metric": "kid", "original": 2.0, **measure}], "protocol": {}})


def test_a_goal_is_reached_at_the_originals_value() -> None:
    goal = parse_goal("kid<=original")
    assert goal.quality(evaluated(pruned=2.0)).reached
    assert not goal.quality(evaluated(pruned=2.1)).reached
    assert goal.quality(evaluated(pruned=2.1, original=None, noise_floor=3.0)).reached
    assert not parse_goal("kid>=2.2").quality(evaluated(pruned=2.1)).reached
    with pytest.raises(FinetuningError, match="ssim does not apply to this pipeline; measured: kid"):
        parse_goal("ssim<=original").quality(evaluated(pruned=2.0))


def test_samples_of_the_recovered_pipeline_join_those_of_the_run(run: Path) -> None:
    finetune_run(run, short(max_train_steps=1), probe=PROBE.replace(samples=2), device="cpu")
    gallery = read_gallery(run / "samples")
    assert gallery is not None
    assert gallery.rows == ("original", "pruned", "recovered")
    assert all(len(files) == 3 for files in gallery.files(run / "samples"))


@pytest.mark.extensive
def test_training_stops_at_the_goal_and_keeps_the_best_weights(tiny: DiffusionPipeline, tmp_path: Path) -> None:
    score_run(tiny, run=tmp_path, probe=ldpruner.Probe(samples=2, steps=2), model="tiny")
    select_run(tmp_path, ldpruner.Budget(parameters=0.6))
    prune_run(tmp_path, original=tiny)
    training = short(max_train_steps=40, learning_rate=2e-3, ema_decay=0.5, early_stopping_patience=None)
    before = finetune_run(tmp_path, training, until="latent_shift<=0", probe=PROBE, original=tiny)
    assert before is not None
    assert before.stopped is None
    assert before.qualities.keys() == before.hours.keys() == before.validation_losses.keys()
    assert before.qualities[before.best_step] == min(before.qualities.values())
    assert RunFolder(tmp_path).history() == before
    (tmp_path / "finetuning" / "state.safetensors").unlink()
    limit = before.qualities[0]
    after = finetune_run(tmp_path, training, until=f"latent_shift<={limit}", probe=PROBE, original=tiny)
    assert after is not None
    assert (after.stopped, after.steps) == ("quality", 0)
