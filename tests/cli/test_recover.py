"""Commands that recover quality, on one small run."""

import functools
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

import ldpruner
from ldpruner.profiling.benchmark import compare
from tests.cli.conftest import PROBE, Run
from tests.families import FAMILIES

TRAINING = ("--max-train-steps", "2", "--train-batch-size", "2", "--validation-steps", "1", "--samples", "4")


@pytest.fixture(scope="module")
def place(scored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a pruned pipeline."""
    import shutil

    from ldpruner import Budget
    from ldpruner.workflow import prune_run, select_run

    run = Path(shutil.copytree(scored, tmp_path_factory.mktemp("pruned") / "run"))
    select_run(run, Budget(parameters=0.8))
    prune_run(run)
    return run


def test_a_pruned_pipeline_is_evaluated_then_finetuned_then_evaluated_as_recovered(
    run: Run, folder: Path, place: Path
) -> None:
    code, out, err = run("evaluate", "--run", place, "--samples", "8", "--json")
    answer = json.loads(out)
    assert code == 0, err
    assert {"metrics", "protocol"} <= answer.keys()
    assert {"metric", "original", "pruned", "interval", "noise_floor"} <= answer["metrics"][0].keys()
    assert json.loads((place / "evaluation.json").read_text()) == {"pipeline": "pruned", **answer}

    code, out, err = run("finetune", "--run", place, *TRAINING)
    lines = out.splitlines()
    assert code == 0, err
    assert lines[0].startswith("finetuned: the validation loss went from ")
    assert lines[-1] == f"next: ldpruner evaluate --run {place}"
    assert type(ldpruner.load(place / "recovered").unet).__name__ == "PrunedUNet2DModel"

    code, out, _ = run("evaluate", "--run", place, "--samples", "8")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith("recovered: ")
    assert "of the parameters" in lines[0]
    header = next(line for line in lines if line.startswith("metric"))
    assert header.split() == ["metric", "original", "recovered", "interval", "noise", "floor", "verdict"]
    assert any(line.startswith("frechet_distance ↓") for line in lines)
    table = lines[lines.index(header) : -1]
    assert all(len(line) <= 80 for line in table)
    assert lines[-1] == f"next: ldpruner bench {folder} {place}/recovered"


SCORER = """
def score(samples, prompts):
    return [sample.getpixel((0, 0))[0] for sample in samples]

def broken(samples, prompts):
    return samples[0].no_such_thing
"""


def test_a_scorer_of_the_current_folder_is_a_metric_and_its_errors_are_one_line(
    run: Run, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scorer_of_a_folder.py").write_text(SCORER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("ldpruner.evaluation.evaluate.compare", functools.partial(compare, rounds=2))
    words = ("evaluate", "--run", place, "--samples", "5")
    code, out, err = run(*words, "--scorer", "scorer_of_a_folder:score")
    assert code == 0, err
    lines = out.splitlines()
    place_of_row = next(index for index, line in enumerate(lines) if line.startswith("scorer_of_a_folder:score ↑"))
    assert lines[place_of_row + 1].startswith("  difference")
    assert lines[place_of_row + 1].split()[-1] in ("good", "worse")

    code, out, err = run(*words, "--scorer", "scorer_of_a_folder:broken", "--quiet")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "scorer scorer_of_a_folder:broken raises AttributeError" in err
    code, out, err = run(*words, "--scorer", "scorer_of_a_folder:broken", "--verbose")
    assert (code, out) == (1, "")
    assert "return samples[0].no_such_thing" in err
    code, out, err = run(*words, "--scorer", "scorer_of_a_folder:nothing", "--quiet")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "has no 'nothing'; accepted: score, broken" in err


@pytest.mark.parametrize("command", ["finetune", "evaluate"])
def test_a_dry_run_resolves_the_settings_without_the_weights(run: Run, place: Path, command: str) -> None:
    code, out, _ = run(command, "--run", place, "--dry-run")
    answer = json.loads(out)
    assert code == 0
    assert answer["probe"]["steps"] == int(PROBE[-1])


@pytest.mark.parametrize("command", ["finetune", "evaluate"])
def test_recovery_needs_a_pruned_pipeline(run: Run, scored: Path, command: str) -> None:
    code, _, err = run(command, "--run", scored)
    assert (code, err.count("\n")) == (1, 1)
    assert "ldpruner prune --run" in err


def test_a_tracker_that_is_not_there_is_one_line(run: Run, place: Path) -> None:
    code, _, err = run("finetune", "--run", place, "--report-to", "abacus", *TRAINING, "--quiet")
    assert (code, err.count("\n")) == (1, 1)
    assert "abacus" in err


@pytest.mark.extensive
@pytest.mark.case(number=12)
@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_the_image_of_a_run_is_asked_for_again_and_recognised(run: Run, tmp_path: Path) -> None:
    model, place, image, other = (tmp_path / name for name in ("model", "run", "a.png", "b.png"))
    FAMILIES["stable-diffusion-img2img"].pipeline().save_pretrained(model)
    Image.new("RGB", (16, 16), "red").save(image)
    Image.new("RGB", (16, 16), "blue").save(other)
    words = ("--budget", "parameters=0.95", "--targets", "mid_block*", *PROBE)
    code, _, err = run("run", model, "--run", place, *words, "--pipeline-arg", f"image={image}")
    assert code == 0, err
    for command in ("finetune", "evaluate"):
        code, out, err = run(command, "--run", place, "--dry-run")
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "give it again: --pipeline-arg image=PATH" in err
        code, out, err = run(command, "--run", place, "--pipeline-arg", f"image={other}", "--dry-run")
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "is not what the run was made with" in err
    given = ("--pipeline-arg", f"image={image}", "--samples", "5")
    code, out, err = run("evaluate", "--run", place, *given, "--json")
    assert code == 0, err
    assert json.loads(out)["protocol"]["probe"]["call"]["image"].keys() == {"type", "digest"}
