"""Commands that prune: what they print, where, and with which exit code."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from ldpruner.run_folder import RunFolder
from tests.cli.conftest import PROBE, Run


@pytest.fixture
def place(scored: Path, tmp_path: Path) -> Path:
    """A copy of the scored run folder, to be changed."""
    return Path(shutil.copytree(scored, tmp_path / "run"))


def test_score_prints_the_fields_of_the_contract_and_resumes(run: Run, folder: Path, place: Path) -> None:
    code, out, err = run("score", folder, "--run", place, *PROBE, "--json")
    answer = json.loads(out)
    assert code == 0, err
    assert answer["probe"]["samples"] == 2
    first = answer["scores"][0]
    assert {"operator", "modification", "score", "samples", "savings"} <= first.keys()
    assert {"parameters", "macs", "latency_ms"} <= first["savings"].keys()
    assert "candidate" not in first
    code, out, _ = run("score", folder, "--run", place, *PROBE)
    lines = out.splitlines()
    assert f"{len(answer['scores'])} modifications scored" in lines[0]
    assert lines[-1] == f"next: ldpruner select --run {place} --budget latency=0.65"


def test_select_and_prune_write_the_plan_and_name_the_next_command(run: Run, folder: Path, place: Path) -> None:
    code, out, err = run("select", "--run", place, "--budget", "parameters=0.8", "--json")
    plan = json.loads(out)
    assert code == 0, err
    assert plan["budget"] == {"parameters": 0.8}
    assert plan["predicted"].keys() == {"latency", "parameters", "macs", "memory"}
    assert plan["predicted"]["parameters"] <= 0.8
    assert all({"operator", "modification", "score"} <= row.keys() for row in plan["removed"])
    out = run("select", "--run", place, "--budget", "parameters=0.8")[1]
    assert f"{len(plan['removed'])} removals" in out.splitlines()[0]
    assert out.splitlines()[-1] == f"next: ldpruner prune --run {place}"
    code, out, err = run("prune", "--run", place, "--json")
    assert code == 0, err
    assert json.loads(out)["removed"] == plan["removed"]
    assert (place / "pruned" / "model_index.json").exists()
    assert run("prune", "--run", place)[1].splitlines()[-1] == f"next: ldpruner bench {folder} {place}/pruned"


def test_a_native_plan_says_what_it_costs_and_makes_a_plain_folder(run: Run, place: Path) -> None:
    words = ("select", "--run", place, "--budget", "parameters=0.9", "--native")
    code, out, err = run(*words, "--json")
    answer = json.loads(out)
    assert code == 0, err
    assert answer["cost"] >= answer["least_cost"] > 0
    assert "times that of the best plan" in run(*words)[1].splitlines()[0]
    assert run("prune", "--run", place)[0] == 0
    index = json.loads((place / "pruned" / "model_index.json").read_text(encoding="utf-8"))
    assert index["unet"][0] == "diffusers"
    assert "auto_map" not in index


@pytest.mark.extensive
def test_run_does_all_of_it_and_keeps_its_plan(
    run: Run, tiny: DiffusionPipeline, folder: Path, tmp_path: Path
) -> None:
    place = tmp_path / "run [/b]"
    words = ("--run", place, "--budget", "parameters=0.95", *PROBE, "--targets", "mid_block*")
    code, out, err = run("run", folder, *words, "--json")
    answer = json.loads(out)
    assert code == 0, err
    assert answer["reload_is_exact"] is True
    original, pruned = answer["pipelines"]
    assert pruned["parameters"] / original["parameters"] == pytest.approx(answer["predicted"]["parameters"])
    assert pruned["macs"] / original["macs"] == pytest.approx(answer["predicted"]["macs"])
    for name in ("run.sqlite", "plan.json", "pruned/model_index.json", "samples/sheet.png"):
        assert (place / name).exists()
    assert run("select", *words[:4])[0] == 0
    assert json.loads((place / "plan.json").read_text())["provenance"].get("measured") is None
    code, out, _ = run("run", folder, *words)
    assert code == 0
    assert json.loads((place / "plan.json").read_text())["provenance"]["measured"] is True
    assert out.startswith("pruned: ")
    assert "bit-identical" in out
    assert out.splitlines()[-1] == f"next: ldpruner finetune --run '{place}'"
    other = copy.deepcopy(tiny)
    torch.nn.init.normal_(other.unet.conv_in.weight)
    other.save_pretrained(tmp_path / "other")
    code, _, err = run("run", tmp_path / "other", *words)
    assert code == 1
    assert "another weights" in err


def test_ignored_operators_stay(run: Run, folder: Path, tmp_path: Path) -> None:
    words = ("--run", tmp_path / "r", *PROBE, "--ignore", "*attentions*", "--targets", "*_blocks.*", "--json")
    answer = json.loads(run("score", folder, *words)[1])
    names = [row["operator"] for row in answer["scores"]]
    assert names
    assert all("_blocks." in name and "attentions" not in name for name in names)


@pytest.mark.parametrize(
    "words",
    [
        ("run", "MODEL", "--run", "r", "--budget", "latency=0.5"),
        ("select", "--run", "r", "--budget", "latency=0.5"),
    ],
)
def test_a_dry_run_prints_the_settings_and_does_nothing(
    run: Run, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(*words, "--dry-run")
    assert code == 0
    assert json.loads(out)["budget"] == {"latency": 0.5}
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_pruning_names_model_and_removals(run: Run, folder: Path, place: Path) -> None:
    run("select", "--run", place, "--budget", "parameters=0.8")
    answer = json.loads(run("prune", "--run", place, "--dry-run")[1])
    assert answer["model"] == str(folder)
    assert answer["removed"] > 0
    assert not (place / "pruned").exists()


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (("score", "MODEL", "--run", "r", "--samples", "0"), 1, "samples=0"),
        (("score", "MODEL", "--run", "r", "--metric", "taste"), 2, "taste"),
        (("score", "MODEL", "--run", "r", "--prompts", "nowhere.txt"), 1, "nowhere.txt"),
        (("score", "MODEL", "--run", "r", "--prompts", "PROMPTS"), 1, "takes no prompts"),
        (("score", "MODEL", "--run", "r", "--pipeline-arg", "eta"), 2, "eta"),
        (("score", "MODEL", "--run", "r", "--ray-address", "here"), 2, "--executor ray"),
        (("score", "MODEL", "--run", "r", "--executor", "cloud"), 2, "cloud"),
        (("score", "MODEL", "--run", "/dev/null/run", "--samples", "1", "--steps", "1"), 1, "/dev/null/run"),
        (("select", "--run", "EMPTY", "--budget", "latency=0.5"), 1, "ldpruner score"),
        (("select", "--run", "SCORED", "--budget", "latency=0"), 1, "latency=0"),
        (("select", "--run", "SCORED", "--budget", "latency=small"), 1, "small"),
        (("select", "--run", "SCORED", "--budget", "speed=0.5"), 1, "has no 'speed'"),
        (("select", "--run", "SCORED", "--budget", "parameters=0.001"), 1, "ask for parameters="),
        (("select", "--run", "SCORED", "--budget", "latency=0.9", "--rule", "dice"), 2, "dice"),
        (("prune", "--run", "EMPTY"), 1, "plan.json"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    run: Run, scored: Path, tmp_path: Path, words: tuple[str, ...], code: int, problem: str
) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    places: dict[str, Any] = {
        "MODEL": RunFolder(scored).model(),
        "SCORED": scored,
        "EMPTY": tmp_path,
        "PROMPTS": tmp_path / "p.txt",
    }
    given, out, err = run(*(places.get(word, word) for word in words), "--quiet")
    assert (given, out, err.count("\n")) == (code, "", 1)
    assert err.startswith("error: ")
    assert problem in err
    assert "pydantic" not in err


def test_a_run_folder_of_an_old_version_is_refused_in_one_line(run: Run, tmp_path: Path) -> None:
    import sqlite3

    with sqlite3.connect(tmp_path / "run.sqlite") as database:
        database.execute("PRAGMA application_id = 1279545426")
        database.execute("PRAGMA user_version = 1")
        database.execute("CREATE TABLE facts (name TEXT, value TEXT)")
    code, out, err = run("select", "--run", tmp_path, "--budget", "latency=0.5")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "format 1" in err
