"""The settings that all methods of the comparison share."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from benchmarks.baselines import LONG_RUNS, SMALL_BATCH, TRIALS, LongRun
from benchmarks.comparison import FEWER_STEPS, METHODS, ORIGINAL, OURS, Bench, recorded, usual_training
from benchmarks.main_results import LONG_STEPS, MODEL
from benchmarks.models import EARLIER, MODELS
from benchmarks.records import read


def bench_of(model: str) -> Bench:
    """A bench of settings only."""
    return Bench(None, Path(), usual_training(model), 256, "cpu")  # type: ignore[arg-type]


def settings_of(bench: Bench, method: str) -> tuple[Any, ...]:
    return method, recorded(bench.training_of(method, 0)), bench.distillation_steps


def longer(bench: Bench, run: LongRun) -> Bench:
    training = bench.training.replace(max_train_steps=run.steps, **SMALL_BATCH, **run.changes)
    return dataclasses.replace(bench, training=training, distillation_steps=run.distillation_steps)


@pytest.mark.parametrize("model", [*MODELS, EARLIER])
def test_every_committed_cell_has_settings_that_the_code_asks_for(model: str) -> None:
    """Otherwise the cell would be measured again."""
    bench = bench_of(model)
    asked = [settings_of(bench, method) for method in METHODS]
    runs = (LONG_RUNS[model], *TRIALS[model])
    originals = [LongRun(ORIGINAL, run.cut, run.steps + run.distillation_steps) for run in runs]
    asked += [settings_of(longer(bench, run), run.method) for run in (*runs, *originals)]
    if model == MODEL:
        long_training = bench.training.replace(max_train_steps=LONG_STEPS)
        asked.append(settings_of(dataclasses.replace(bench, training=long_training), OURS))
    for record in read("baselines"):
        settings = record["settings"]
        if settings["model"] == model and settings["method"] != FEWER_STEPS:
            assert (settings["method"], settings["training"], settings["distillation_steps"]) in asked
