"""What a dry run of scoring says, counted on the configuration alone."""

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import PROBE, Run


def test_a_dry_run_of_scoring_counts_without_weights(run: Run, folder: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(folder, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")))
    words = ("score", model, "--run", tmp_path / "r", "--samples", "100", "--steps", "2", "--dry-run")
    code, out, err = run(*words, "--json")
    answer = json.loads(out)
    assert code == 0, err
    assert answer["operators"] <= answer["modifications"]
    exhaustive = json.loads(run(*words, "--json", "--exhaustive")[1])
    assert exhaustive["denoiser_calls"] == 100 * 2 * (1 + answer["modifications"])
    assert 0 < answer["denoiser_calls"] < exhaustive["denoiser_calls"]
    assert exhaustive["hours"] > 0
    assert not (tmp_path / "r").exists()


def test_people_read_calls_and_hours(run: Run, folder: Path, tmp_path: Path) -> None:
    code, out, _ = run("score", folder, "--run", tmp_path / "r", *PROBE, "--dry-run")
    assert code == 0
    assert "GPU hours" in out
    assert "by arithmetic alone" in out


def test_a_dry_run_of_a_huge_probe_answers_at_once(run: Run, folder: Path, tmp_path: Path) -> None:
    code, out, _ = run("score", folder, "--run", tmp_path / "r", "--samples", "99999999999", "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["probe"]["samples"] == 99999999999


@pytest.mark.case(name="numbers-that-mean-nothing")
@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "0", "-1"])
def test_a_speed_that_is_no_number_is_refused(run: Run, folder: Path, number: str) -> None:
    code, out, err = run("score", folder, "--run", "new", "--dry-run", f"--tflops={number}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--tflops" in err
