"""The command that exports, from a run or from a model."""

import json
import shutil
from pathlib import Path
from typing import get_args

import pytest

from ldpruner.cli.export import FORMAT
from ldpruner.pipelines.sessions import FILES
from tests.cli.conftest import Run

pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporters and runtimes


@pytest.fixture
def pruned(run: Run, scored: Path, tmp_path: Path) -> Path:
    """A run folder with a pruned pipeline."""
    place = Path(shutil.copytree(scored, tmp_path / "run"))
    assert run("select", "--run", place, "--budget", "parameters=0.8")[0] == 0
    assert run("prune", "--run", place)[0] == 0
    return place


@pytest.mark.extensive
def test_a_run_is_exported_and_timed_beside_its_original(run: Run, folder: Path, pruned: Path) -> None:
    code, out, err = run("export", "--run", pruned, "--format", "torch-export", "--steps", "3")
    lines = out.splitlines()
    assert code == 0, err
    assert lines[0].startswith("exported to torch-export: latents differ by ")
    assert lines[-1] == f"next: ldpruner bench {pruned / 'pruned'} {pruned / 'exported-torch-export'}"
    words = ("bench", folder, pruned / "exported-torch-export", "--steps", "1", "--rounds", "2")
    code, out, err = run(*words, "--trust-programs", "--json")
    assert code == 0, err
    original, exported = json.loads(out)["pipelines"]
    assert exported["macs"] < original["macs"]
    assert exported["parameters"] < original["parameters"]
    code, _, err = run(*words)
    assert code == 1
    assert "--trust-programs" in err or "trust_programs=True" in err


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (("export", "--format", "onnx"), 2, "give a MODEL or --run"),
        (("export", "MODEL", "--run", "RUN", "--format", "onnx"), 2, "give a MODEL or --run"),
        (("export", "MODEL", "--format", "onnx"), 2, "--out is missing"),
        (("export", "MODEL", "--format", "tflite", "--out", "x"), 2, "tflite"),
        (("export", "nowhere", "--format", "onnx", "--out", "x"), 1, "nowhere"),
        (("export", "--run", "RUN", "--format", "onnx"), 1, "no pruned pipeline"),
    ],
)
def test_a_mistake_is_one_line(
    run: Run, folder: Path, scored: Path, words: tuple[str, ...], code: int, problem: str
) -> None:
    places = {"MODEL": folder, "RUN": scored}
    status, out, err = run(*(places.get(word, word) for word in words), "--quiet")
    assert (status, out, err.count("\n")) == (code, "", 1)
    assert problem in err


def test_the_formats_are_those_of_the_library() -> None:
    assert get_args(get_args(FORMAT)[0]) == tuple(FILES)


def test_a_dry_run_exports_nothing(run: Run) -> None:
    code, out, _ = run("export", "m", "--format", "openvino", "--out", "x", "--dry-run")
    assert code == 0
    assert json.loads(out)["format"] == "openvino"
