"""Whole steps on a run folder, from Python: each one call, resumable."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner import Budget, Plan, Probe, Training
from ldpruner.progress import Long
from ldpruner.recovery import finetune_run
from ldpruner.workflow import evaluate_run, prune_run, score_run, select_run

Item = TypeVar("Item")
PROBE = Probe(samples=2, steps=2)
BUDGET = Budget(operators=2)
FEW: dict[str, Any] = {"targets": ["mid_block*"], "probe": PROBE}  # few operators are scored fast
TRAINING = Training(max_train_steps=2, train_batch_size=2, lr_warmup_steps=0, validation_steps=1)


class Watch:
    """Records what is reported, and stops at a description."""

    def __init__(self, stop: str = "") -> None:
        self.stop = stop
        self.seen: list[str] = []

    def __call__(self, work: Long[Item], description: str) -> Iterator[Item]:
        self.seen.append(description)
        if description == self.stop:
            raise KeyboardInterrupt
        return iter(work)


def test_one_call_does_all_of_it_and_reports_every_part(tiny: DiffusionPipeline, tmp_path: Path) -> None:
    watch = Watch()
    outcome = ldpruner.run(tiny, BUDGET, run=tmp_path, progress=watch, **FEW)
    assert outcome.reload_is_exact
    assert outcome.noise_floor > 0
    assert outcome.plan == Plan.read(tmp_path / "plan.json")
    assert outcome.samples[0] == tmp_path / "samples" / "sheet.png"
    assert all(path.exists() for path in outcome.samples)
    assert watch.seen == [
        "measuring what each module costs",
        "scoring",
        "timing plans",
        "saving the pruned pipeline",
        "timing original and pruned",
        "comparing latents",
        "writing samples",
    ]


@pytest.mark.parametrize(
    "stop",
    [
        "scoring",
        *(
            pytest.param(stop, marks=pytest.mark.extensive)
            for stop in ("timing original and pruned", "writing samples")
        ),
    ],
)
def test_the_same_call_resumes(tiny: DiffusionPipeline, tmp_path: Path, stop: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        ldpruner.run(tiny, BUDGET, run=tmp_path, progress=Watch(stop), **FEW)
    plan = tmp_path / "plan.json"
    before = plan.read_text() if plan.exists() else None
    again = Watch()
    outcome = ldpruner.run(tiny, BUDGET, run=tmp_path, progress=again, **FEW)
    assert outcome.reload_is_exact
    assert before in (None, plan.read_text())
    assert ("scoring" in again.seen) == (stop == "scoring")


@pytest.mark.extensive
def test_a_plan_is_kept_for_the_same_settings_only(tiny: DiffusionPipeline, tmp_path: Path) -> None:
    def rescored(budget: Budget = BUDGET, **options: Any) -> bool:
        watch = Watch()
        ldpruner.run(tiny, budget, run=tmp_path, progress=watch, **FEW, **options)
        return "scoring" in watch.seen

    assert rescored()
    assert not rescored(granularity="leaf")  # as by default for a small network
    assert rescored(ignore=("mid_block",))
    assert "mid_block" not in _removed(tmp_path)
    assert not rescored(ignore=("mid_block",))
    assert rescored(Budget(operators=1))
    assert rescored(Budget(operators=1), rule="greedy")
    assert rescored(granularity="block")
    assert set(_removed(tmp_path)) <= {
        operator.name for operator in ldpruner.find_operators(tiny, granularity="block")
    }


def _removed(run: Path) -> list[str]:
    return [planned.operator for planned in Plan.read(run / "plan.json").removed]


@pytest.mark.extensive
def test_each_step_is_one_call_with_the_pipeline_at_hand(tiny: DiffusionPipeline, tmp_path: Path) -> None:
    """A run from Python needs no name of its model."""
    scores = score_run(tiny, run=tmp_path, budgets=None, **FEW)
    assert score_run(tiny, run=tmp_path, budgets=None, **FEW) == scores
    plan = select_run(tmp_path, BUDGET)
    assert prune_run(tmp_path, original=tiny) == plan
    history = finetune_run(tmp_path, TRAINING, probe=PROBE.replace(samples=4), original=tiny)
    assert history is not None
    assert history.steps == 2
    assert finetune_run(tmp_path, TRAINING, probe=PROBE.replace(samples=4), original=tiny) == history
    evaluation = evaluate_run(tmp_path, probe=PROBE.replace(samples=8), original=tiny)
    assert evaluation["parameters"].pruned == ldpruner.load(tmp_path / "recovered").unet.num_parameters()
    assert (tmp_path / "evaluation.json").exists()


def test_a_step_opens_the_original_by_its_name(folder: Path, tmp_path: Path) -> None:
    score_run(ldpruner.load(folder), run=tmp_path, model=str(folder), budgets=[BUDGET], **FEW)
    select_run(tmp_path, BUDGET)
    watch = Watch()
    prune_run(tmp_path, progress=watch)
    assert watch.seen == ["opening the original", "pruning and saving"]
