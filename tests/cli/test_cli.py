"""The command line on a small real pipeline: what it prints, where, and with which exit code."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from ldpruner import cli

Run = Callable[..., tuple[int, str, str]]
PROBE = ("--samples", "2", "--steps", "2")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line; gives the exit code, standard output and standard error."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ldpruner", *map(str, arguments)])
        capfd.readouterr()
        code = cli.main()
        output = capfd.readouterr()
        return code, output.out, output.err

    return call


@pytest.fixture(scope="module")
def model(tiny: DiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scored(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with scores."""
    folder = tmp_path_factory.mktemp("scored") / "run"
    command = [sys.executable, "-m", "ldpruner", "score", str(model), "--run", str(folder), *PROBE, "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["scores"]
    return folder


@pytest.fixture
def places(model: Path, scored: Path, tmp_path: Path) -> dict[str, str]:
    """What stands for what in a command line."""
    return {"MODEL": str(model), "SCORED": str(scored), "EMPTY": str(tmp_path)}


def test_operators_prints_the_fields_of_the_contract(run: Run, model: Path) -> None:
    code, out, _ = run("operators", model, "--json")
    answer = json.loads(out)
    assert code == 0
    assert {"pipeline", "component", "parameters", "macs", "operators"} <= answer.keys()
    assert (answer["pipeline"], answer["component"]) == ("LDMPipeline", "unet")
    fields = {"operator", "module_type", "calls", "input_shape", "output_shape", "parameters", "macs", "modifications"}
    assert all(fields <= one.keys() and one["modifications"] for one in answer["operators"])


def test_operators_needs_no_weights(run: Run, model: Path, tmp_path: Path) -> None:
    for path in model.rglob("*.json"):
        copy = tmp_path / path.relative_to(model)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    assert run("operators", tmp_path, "--json")[1] == run("operators", model, "--json")[1]


def test_score_prints_the_fields_of_the_contract_and_resumes(run: Run, model: Path, scored: Path) -> None:
    code, out, err = run("score", model, "--run", scored, *PROBE, "--json")
    answer = json.loads(out)
    assert code == 0, err
    assert answer["probe"]["samples"] == 2
    draws = sum(one["samples"] for one in answer["scores"])
    assert 2 * draws <= answer["denoiser_calls"] <= 2 * 2 * (1 + len(answer["scores"]))
    first = answer["scores"][0]
    assert {"operator", "kind", "modification", "score", "interval", "samples", "savings"} <= first.keys()
    assert {"parameters", "macs", "latency_ms"} <= first["savings"].keys()


def test_select_and_prune_print_the_plan_and_write_it(run: Run, scored: Path) -> None:
    code, out, err = run("select", "--run", scored, "--budget", "parameters=0.8", "--json")
    plan = json.loads(out)
    assert code == 0, err
    assert plan["budget"] == {"parameters": 0.8}
    assert plan["predicted"].keys() == {"latency", "parameters", "macs", "memory"}
    assert plan["predicted"]["parameters"] <= 0.8
    assert all({"operator", "modification", "score"} <= one.keys() for one in plan["removed"])
    code, out, err = run("prune", "--run", scored, "--json")
    assert code == 0, err
    assert json.loads(out)["removed"] == plan["removed"]
    assert (scored / "pruned" / "model_index.json").exists()


def test_run_does_all_of_it(run: Run, model: Path, tmp_path: Path) -> None:
    code, out, err = run("run", model, "--run", tmp_path / "run", "--budget", "parameters=0.8", *PROBE, "--json")
    answer = json.loads(out)
    assert code == 0, err
    assert answer["reload_is_exact"] is True
    original, pruned = answer["pipelines"]
    assert pruned["parameters"] / original["parameters"] == pytest.approx(answer["predicted"]["parameters"])
    assert pruned["macs"] / original["macs"] == pytest.approx(answer["predicted"]["macs"])
    assert answer["score"] > 0
    for name in ("run.sqlite", "plan.json", "pruned/model_index.json", "samples/before-after.png"):
        assert (tmp_path / "run" / name).exists()


def test_run_takes_up_a_plan_that_a_run_of_the_same_model_made(
    run: Run, tiny: DiffusionPipeline, model: Path, tmp_path: Path
) -> None:
    asked = ("--run", tmp_path / "run", "--budget", "parameters=0.8")
    plan = tmp_path / "run" / "plan.json"
    assert run("run", model, *asked, *PROBE)[0] == 0
    measured = plan.read_text()
    assert run("select", *asked)[0] == 0
    assert json.loads(plan.read_text())["provenance"].get("measured") is None
    assert run("run", model, *asked, *PROBE)[0] == 0
    assert plan.read_text() == measured  # what was only predicted is not taken up
    other = copy.deepcopy(tiny)
    torch.nn.init.normal_(other.unet.conv_in.weight)
    other.save_pretrained(tmp_path / "other")
    code, _, err = run("run", tmp_path / "other", *asked, *PROBE)
    assert code == 1
    assert "another weights" in err


def test_bench_compares_two_pipelines(run: Run, model: Path) -> None:
    code, out, err = run("bench", model, model, "--steps", "1", "--rounds", "3", "--json")
    answer = json.loads(out)
    assert code == 0, err
    assert len(answer["pipelines"]) == 2
    assert {"pipeline", "parameters", "macs", "latency_ms", "peak_memory_bytes"} <= answer["pipelines"][0].keys()
    ratio = answer["latency_ratio"]
    assert ratio["p10"] <= ratio["median"] <= ratio["p90"]


@pytest.mark.parametrize(
    "command",
    [
        ("operators", "MODEL"),
        ("demo",),
        ("run", "MODEL", "--run", "r", "--budget", "latency=0.5"),
        ("bench", "MODEL"),
        ("select", "--run", "r", "--budget", "latency=0.5"),
    ],
)
def test_a_dry_run_prints_the_settings_and_does_nothing(
    run: Run, command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(*command, "--dry-run")
    assert code == 0
    assert isinstance(json.loads(out), dict)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_scoring_says_what_it_takes(run: Run, model: Path, tmp_path: Path) -> None:
    code, out, _ = run("score", model, "--run", tmp_path / "r", *PROBE, "--dry-run")
    answer = json.loads(out)
    assert code == 0
    assert answer["operators"] <= answer["modifications"]
    assert 0 < answer["denoiser_calls"][0] <= answer["denoiser_calls"][1]
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (("operators", "nowhere"), 1, "nowhere"),
        (("operators", "zoo:nothing"), 1, "satellite"),
        (("operators", "EMPTY"), 1, "model_index.json"),
        (("operators", "MODEL", "--component", "transformer"), 1, "transformer"),
        (("operators", "MODEL", "--colour"), 2, "--colour"),
        (("operators",), 2, "model"),
        (("prune-it",), 2, "prune-it"),
        (("score", "MODEL", "--run", "r", "--samples", "0"), 1, "samples=0"),
        (("score", "MODEL", "--run", "r", "--samples", "many"), 2, "--samples"),
        (("score", "MODEL", "--run", "r", "--metric", "taste"), 2, "taste"),
        (("score", "MODEL", "--run", "r", "--prompts", "nowhere.txt"), 1, "nowhere.txt"),
        (("score", "MODEL", "--run", "r", "--call", "eta"), 2, "eta"),
        (("score", "MODEL", "--run", "/dev/null/run", "--samples", "1", "--steps", "1"), 1, "/dev/null/run"),
        (("select", "--run", "EMPTY", "--budget", "latency=0.5"), 1, "ldpruner score"),
        (("select", "--run", "SCORED", "--budget", "latency=1.5"), 1, "1.5"),
        (("select", "--run", "SCORED", "--budget", "latency=0"), 1, "latency=0"),
        (("select", "--run", "SCORED", "--budget", "latency=small"), 1, "small"),
        (("select", "--run", "SCORED", "--budget", "beauty=0.5"), 1, "beauty"),
        (("select", "--run", "SCORED", "--budget", "latency"), 2, "latency"),
        (("select", "--run", "SCORED", "--budget", "parameters=0.001"), 1, "ask for parameters="),
        (("select", "--run", "SCORED", "--budget", "latency=0.9", "--rule", "dice"), 2, "dice"),
        (("prune", "--run", "EMPTY"), 1, "plan.json"),
        (("bench", "MODEL", "nowhere"), 1, "nowhere"),
        (("bench", "MODEL", "--device", "abacus"), 2, "abacus"),
        (("bench", "MODEL", "--dtype", "int99"), 2, "int99"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    run: Run, places: dict[str, str], command: tuple[str, ...], code: int, words: str
) -> None:
    given, out, err = run(*(places.get(word, word) for word in command))
    assert (given, out) == (code, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert words in err


def test_help_of_every_command_has_an_example() -> None:
    for command in cli.app.registered_commands:
        assert command.callback is not None
        assert "Example: ldpruner" in (command.callback.__doc__ or "")


def test_the_module_runs_as_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "ldpruner", "--help"], capture_output=True, text=True, check=True)
    assert "operators" in done.stdout


def test_evaluate_prints_the_fields_of_the_contract(run: Run, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run("run", model, "--run", folder, "--budget", "parameters=0.7", *PROBE)[0] == 0
    code, out, _ = run("evaluate", "--run", folder, "--samples", "8", "--json")
    answer = json.loads(out)
    assert code == 0
    assert {"metrics", "protocol"} <= answer.keys()
    fields = {"metric", "original", "pruned", "interval", "interval_type", "noise_floor"}
    assert all(fields == row.keys() for row in answer["metrics"])
    assert json.loads((folder / "evaluation.json").read_text()) == {"pipeline": "pruned", **answer}
    code, out, _ = run("evaluate", "--run", folder, "--samples", "8")
    assert code == 0
    assert "frechet_distance" in out


def test_recovery_needs_a_pruned_pipeline(run: Run, model: Path, tmp_path: Path) -> None:
    assert run("score", model, "--run", tmp_path, *PROBE)[0] == 0
    for command in ("finetune", "evaluate"):
        code, _, error = run(command, "--run", tmp_path)
        assert (code, error.count("\n")) == (1, 1)
        assert "ldpruner prune --run" in error
