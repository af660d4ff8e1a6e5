"""The demonstration: at its full size in `make demo`, here at a small one."""

import json
from pathlib import Path

import pytest

from ldpruner import Budget, Probe, Training
from ldpruner.cli import demo
from tests.cli.conftest import Run
from tests.families import FAMILIES


def test_its_settings_are_valid() -> None:
    assert Budget(**demo.BUDGET).latency == 0.7
    assert Probe(**demo.PROBE).samples == 16
    assert Training(**demo.TRAINING).max_train_steps == 150


def test_a_dry_run_prints_them(run: Run) -> None:
    code, out, _ = run("demo", "--dry-run")
    assert code == 0
    assert json.loads(out)["training"] == demo.TRAINING


@pytest.mark.extensive
@pytest.mark.filterwarnings("ignore")  # of diffusers, on a pipeline without a safety checker
def test_a_small_one_runs_to_its_end(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FAMILIES["stable-diffusion"].pipeline().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "prompts.txt").write_text("a red cat\nthe blue sea\n")
    smaller = {
        "MODEL": str(tmp_path / "model"),
        "BUDGET": {"parameters": 0.8},
        "PROBE": {"samples": 2, "steps": 2, "guidance": 4.0},
        "TRAINING": {"max_train_steps": 2, "train_batch_size": 2, "validation_steps": 1},
        "OWN_SAMPLES": 4,
        "EVALUATED": 8,
    }
    for name, value in smaller.items():
        monkeypatch.setattr(demo, name, value)
    code, out, err = run("demo", "--run", tmp_path / "demo")
    lines = out.splitlines()
    assert code == 0, err
    assert lines[0].startswith("recovered: ")
    assert any(line.startswith("pruned: ") for line in lines)
    assert (tmp_path / "demo" / "samples" / "sheet.png").exists()
    assert lines[-1] == "next: ldpruner run YOUR-MODEL --run runs/NAME --budget latency=0.65"
