"""`ldpruner recipe`: what it would take, all of it, and its mistakes."""

import json
import shutil
from pathlib import Path

import pytest

import ldpruner
from ldpruner.cli import recipe
from ldpruner.recipes import StageName
from tests.cli.conftest import Run
from tests.test_recipes import CONFIGURATIONS, RECIPES, SMALL

ARCHITECTURES = Path(__file__).parents[1] / "architectures"


def test_its_stages_are_those_of_the_library() -> None:
    assert recipe.StageName == StageName


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.extensive if place else []) for place, path in enumerate(RECIPES)],
    ids=lambda path: path.stem,
)
def test_a_published_recipe_passes_its_dry_run(run: Run, path: Path) -> None:
    words = (path, "--dry-run", "--config", ARCHITECTURES / CONFIGURATIONS[path.stem])
    code, out, err = run("recipe", *words, "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert answer["operators"] > 200
    assert answer["modifications"] >= answer["operators"]
    assert answer["stages"].keys() == {"scoring", "finetuning", "evaluation", "total"}
    assert "arithmetic" in answer["note"]
    code, out, _ = run("recipe", *words)
    assert code == 0
    assert "GPU hours" in out
    assert f"missing: data={answer['recipe']['data']}" in out


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (("nowhere.yaml",), 1, "nowhere.yaml"),
        ((".",), 1, "IsADirectoryError"),
        ((), 2, "file"),
        (("GOOD", "--only", "sleep"), 2, "sleep"),
        (("GOOD", "--only", "evaluate"), 1, "ldpruner score"),
        (("GOOD", "--dry-run", "--config", "nowhere"), 1, "nowhere"),
        (("GOOD", "--dry-run", "--tflops", "0"), 2, "--tflops"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    run: Run, folder: Path, tmp_path: Path, words: tuple[str, ...], code: int, problem: str
) -> None:
    good = tmp_path / "good.yaml"
    good.write_text(SMALL.format(model=folder, run=tmp_path / "run"))
    given, out, err = run("recipe", *(good if word == "GOOD" else word for word in words))
    assert (given, out, err.count("\n")) == (code, "", 1)
    assert problem in err.lower() or problem in err


def test_several_processes_only_finetune(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(SMALL.format(model=folder, run=tmp_path / "run"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = run("recipe", path)
    assert code == 2
    assert "--only finetune" in err


def test_a_missing_file_is_named_when_dry_and_an_error_when_not(run: Run, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(SMALL.format(model=folder, run=tmp_path / "run").replace("examples: 4", "data: nowhere"))
    code, out, _ = run("recipe", path, "--dry-run", "--json")
    assert (code, json.loads(out)["missing"]) == (0, {"data": "nowhere"})
    code, out, err = run("recipe", path)
    assert (code, out) == (1, "")
    assert "data='nowhere': no such file" in err
    assert not (tmp_path / "run").exists()


def test_a_small_recipe_runs_from_end_to_end_and_resumes(run: Run, folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    path = tmp_path / "recipe.yaml"
    path.write_text(SMALL.format(model=folder, run=place))
    code, out, err = run("recipe", path, "--json")
    assert code == 0, err
    first = json.loads(out)
    assert first.keys() == {"prune", "finetune", "evaluate"}
    assert first["prune"]["predicted"]["parameters"] <= 0.7
    assert first["finetune"]["steps"] == 3
    names = ("run.sqlite", "plan.json", "pruned", "recovered", "evaluation.json", "recipe.json")
    assert all((place / name).exists() for name in names)

    plan, pruned = (place / "plan.json").stat().st_mtime_ns, (place / "pruned").stat().st_mtime_ns
    shutil.rmtree(place / "recovered")
    code, out, err = run("recipe", path, "--json")
    assert code == 0, err
    second = json.loads(out)
    assert second["prune"] is None
    assert second["finetune"] == first["finetune"]
    assert (plan, pruned) == ((place / "plan.json").stat().st_mtime_ns, (place / "pruned").stat().st_mtime_ns)
    assert ldpruner.load(place / "recovered").unet.num_parameters() == first["prune"]["pipelines"][1]["parameters"]

    path.write_text(path.read_text().replace("0.7", "0.8"))
    code, _, err = run("recipe", path)
    assert code == 1
    assert "was pruned with budget=" in err
