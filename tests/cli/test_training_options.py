"""One option for each setting of a training."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from ldpruner import Training
from ldpruner.cli.app import app
from ldpruner.cli.training_options import _help_texts
from tests.cli.conftest import Run

GIVEN = ("--max-train-steps", "7", "--learning-rate", "3e-4", "--lr-scheduler", "constant", "--no-snr-weighting")


def training_of(run: Run, scored: Path, *words: str | Path) -> Any:
    code, out, err = run("finetune", "--run", scored, *words, "--dry-run")
    assert code == 0, err
    return json.loads(out)["training"]


def test_each_setting_is_an_option_with_help() -> None:
    group: Any = typer.main.get_command(app)
    options = {option for parameter in group.commands["finetune"].params for option in parameter.opts}
    assert {f"--{name.replace('_', '-')}" for name in Training.model_fields} <= options
    assert set(_help_texts()) == set(Training.model_fields)


def test_options_are_settings_and_the_rest_are_defaults(run: Run, scored: Path) -> None:
    words = (*GIVEN, "--early-stopping-patience", "none", "--ema-decay", "0.9", "--timesteps", "all")
    guidance = ("--autoguidance-scale", "0.5", "--guidance-interval", "0.1", "0.8")
    expected = Training(
        max_train_steps=7,
        learning_rate=3e-4,
        lr_scheduler="constant",
        snr_weighting=False,
        autoguidance_scale=0.5,
        guidance_interval=(0.1, 0.8),
        early_stopping_patience=None,
        ema_decay=0.9,
        timesteps="all",
    )
    assert training_of(run, scored, *words, *guidance) == expected.resolved(data=False, steps=25).model_dump(
        mode="json"
    )


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_a_file_gives_settings_and_options_come_first(run: Run, scored: Path, tmp_path: Path, ending: str) -> None:
    settings = {"max_train_steps": 5, "early_stopping_patience": None, "seed": 3}
    file = tmp_path / f"training.{ending}"
    file.write_text(json.dumps(settings))
    training = training_of(run, scored, "--config", file, *GIVEN)
    assert (training["max_train_steps"], training["seed"], training["early_stopping_patience"]) == (7, 3, None)


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (("--learning-rate", "-1"), 1, "learning_rate=-1"),
        (("--max-train-steps", "many"), 2, "--max-train-steps"),
        (("--lr-scheduler", "polka"), 2, "'polka' is not one of"),
        (("--early-stopping-patience", "often"), 1, "early_stopping_patience='often'"),
        (("--learning_rate", "1"), 2, "--learning-rate"),
        (("--config", "nowhere.yaml"), 1, "nowhere.yaml"),
    ],
)
def test_a_wrong_setting_is_one_line(run: Run, scored: Path, words: tuple[str, ...], code: int, problem: str) -> None:
    given, out, err = run("finetune", "--run", scored, *words, "--dry-run")
    assert (given, out, err.count("\n")) == (code, "", 1)
    assert problem in err
