"""What a dry run of scoring says, counted on the configuration alone."""

import copy
import json
import shutil
from pathlib import Path
from typing import get_args

import pytest
from diffusers import DiffusionPipeline

from ldpruner import Probe, find_operators
from ldpruner.cli import forecast, options
from ldpruner.estimate import PEAK_TFLOPS
from ldpruner.pruning.opening import open_pipeline
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


def test_each_granularity_is_counted_and_one_is_scored(run: Run, folder: Path, tmp_path: Path) -> None:
    words = ("score", folder, "--run", tmp_path / "r", *PROBE, "--dry-run", "--exhaustive", "--granularity", "block")
    answer = json.loads(run(*words, "--json")[1])
    levels = answer["granularities"]
    assert answer["granularity"] == "block"
    assert answer["denoiser_calls"] == levels["block"]["denoiser_calls"] == 2 * 2 * (1 + answer["modifications"])
    counts = [levels[level]["modifications"] for level in ("block", "leaf")]
    assert counts == [answer["modifications"], len(find_operators(open_pipeline(folder)))]
    assert "scored: block" in run(*words)[1]


def test_a_named_gpu_is_as_fast_as_its_data_sheet_says(run: Run, folder: Path) -> None:
    words = ("score", folder, "--run", "new", *PROBE, "--dry-run", "--json")
    named, given = (json.loads(run(*words, *speed)[1]) for speed in (("--gpu", "a100"), ("--tflops", "124.8")))
    assert named["hours"] == pytest.approx(given["hours"])
    assert "40% of the dense peak of an A100" in named["note"]
    code, _, err = run(*words, "--gpu", "A100", "--tflops", "100")
    assert (code, err.count("\n")) == (2, 1)
    assert "--gpu" in err


def test_the_gpus_of_the_option_are_those_of_the_estimate() -> None:
    choices = get_args(get_args(get_args(options.GPU)[0])[0])
    assert set(choices) == set(PEAK_TFLOPS)


def test_a_large_default_size_is_announced_and_a_small_or_chosen_one_is_not(
    tiny_text: DiffusionPipeline, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a network that makes pictures of 1024 pixels: its autoencoder halves them."""
    large = copy.deepcopy(tiny_text)
    large.unet.register_to_config(sample_size=512)
    large.vae.register_to_config(sample_size=1024)
    large.save_pretrained(tmp_path / "large")

    def said(pipeline: DiffusionPipeline, **call: int) -> str:
        capfd.readouterr()
        probe = Probe(samples=4, steps=2, prompts=("a cat",), call=call)
        forecast.announce(str(tmp_path / "large"), pipeline, probe, None, granularity="block")
        return capfd.readouterr().err

    assert "1024 x 1024 pixels, the pipeline's default" in said(large)
    assert "--height 512 --width 512" in said(large)
    assert said(large, height=1024, width=1024) == said(tiny_text) == ""
