"""The application: its commands, its exit codes, and how fast it answers."""

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from ldpruner import Budget, __version__
from ldpruner.cli import STOPPED
from ldpruner.cli.app import COMMANDS, app
from ldpruner.workflow import select_run
from tests.cli.conftest import Run

NAMES = [function.__name__ for functions in COMMANDS.values() for function in functions]
HEAVY = ("torch", "diffusers", "transformers", "scipy", "numpy", "accelerate", "PIL", "gradio")
GENEROUS = 5.0  # seconds of processor time; half a second on an idle machine


def loaded_by(code: str) -> tuple[set[str], float]:
    """The packages that a fresh interpreter has loaded after some code, and the processor time that it took."""
    program = f"import sys, time\n{code}\nprint()\nprint(time.process_time(), *sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, *modules = done.stdout.splitlines()[-1].split()
    return {module.partition(".")[0] for module in modules}, float(seconds)


@pytest.mark.parametrize(
    "code",
    [
        "import ldpruner",
        "import ldpruner.cli.app",
        "sys.argv = ['ldpruner', '--help']; from ldpruner.cli import main; main()",
        "sys.argv = ['ldpruner', 'finetune', '--help']; from ldpruner.cli import main; main()",
        "sys.argv = ['ldpruner', '--version']; from ldpruner.cli import main; main()",
    ],
)
def test_import_and_help_load_no_heavy_package(code: str) -> None:
    packages, seconds = loaded_by(code)
    assert not packages & set(HEAVY)
    assert seconds < GENEROUS


def test_commands_are_listed_in_the_order_of_the_work_under_their_panels(run: Run) -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    words = ["Prune", "operators", "score", "select", "prune", "run", "Recover and measure", "finetune", "evaluate"]
    words += ["bench", "Take it elsewhere", "apply", "diff", "push", "serve", "Whole runs", "recipe", "demo"]
    places = [out.index(f"─ {word} ─") if word[0].isupper() else out.index(f"│ {word} ") for word in words]
    assert places == sorted(places)


def test_no_command_prints_the_help(run: Run) -> None:
    assert run()[:2] == run("--help")[:2]


def test_the_version_is_an_option(run: Run) -> None:
    assert run("--version") == (0, f"ldpruner {__version__}\n", "")


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_an_example_and_the_shared_options(run: Run, name: str) -> None:
    code, out, _ = run(name, "--help")
    assert code == 0
    assert "Example: " in out
    group: Any = typer.main.get_command(app)
    options = {option for parameter in group.commands[name].params for option in parameter.opts}
    assert {"--json", "--quiet", "--verbose", "--dry-run"} <= options


def test_completion_can_be_installed(run: Run) -> None:
    assert "--install-completion" in run("--help")[1]


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (("prune-it",), 2, "prune-it"),
        (("operators",), 2, "MODEL"),
        (("operators", "MODEL", "--colour"), 2, "--colour"),
        (("score", "MODEL", "--run", "r", "--samples", "many"), 2, "--samples"),
        (("score", "MODEL", "--run", "r", "--metric", "taste"), 2, "mean_variance"),
        (("select", "--run", "r", "--budget", "macs=0.5", "--rule", "dice"), 2, "greedy"),
        (("operators", "MODEL", "--quiet", "--verbose"), 2, "choose one"),
    ],
)
def test_a_mistake_in_the_words_is_one_line(run: Run, words: tuple[str, ...], code: int, problem: str) -> None:
    given, out, err = run(*words)
    assert (given, out, err.count("\n")) == (code, "", 1)
    assert err.startswith("error: ")
    assert problem.lower() in err.lower()


@pytest.mark.parametrize("name", ["m2/[/]", "[red]x", "\x1b[31mred", "a\nb", "x" * 5000, "~/nowhere", "zoo:[/b]"])
def test_names_from_outside_are_printed_as_they_are_and_never_obeyed(run: Run, name: str) -> None:
    code, out, err = run("operators", name)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "\x1b" not in err
    assert name[:5].encode("unicode_escape").decode() in err.replace("\\\\", "\\")


def test_ctrl_c_in_a_command_is_one_line_and_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ldpruner.pruning.serialization.load_meta", interrupted)
    assert run("operators", "zoo:satellite") == (130, "", f"{STOPPED}\n")


class Interrupt:
    """Finds no module, and sends this process a Ctrl-C when one of some name is imported."""

    name = ""

    @classmethod
    def find_spec(cls, name: str, *_: object) -> None:
        if name == cls.name:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.case(number=1)
@pytest.mark.parametrize("name", ["torch", "numpy.linalg", "diffusers"])
def test_ctrl_c_during_an_import_is_one_line_and_130(name: str) -> None:
    """Most of a command's first seconds. Libraries swallow it, and go on with what is half imported."""
    finder = f"import os, signal, sys\n{inspect.getsource(Interrupt)}\nInterrupt.name = {name!r}\n"
    program = f"{finder}sys.meta_path.insert(0, Interrupt)\nfrom ldpruner.cli import main\nsys.exit(main())"
    command = [sys.executable, "-c", program, "operators", "zoo:satellite"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"\n{STOPPED}\n")


OPERATORS, BENCH = ("operators", "zoo:satellite"), ("bench", "zoo:satellite", "--rounds", "1000")


@pytest.mark.case(number=1)
@pytest.mark.parametrize(
    ("words", "number", "code"),
    [
        (OPERATORS, signal.SIGINT, 130),
        (BENCH, signal.SIGINT, 130),
        (BENCH, signal.SIGTERM, 143),
        (BENCH, signal.SIGHUP, 129),
    ],
)
def test_a_signal_at_any_instant_is_one_line_and_its_exit_code(
    words: tuple[str, ...], number: signal.Signals, code: int
) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    program = "import sys; from ldpruner.cli import main; print('up', flush=True); sys.exit(main())"
    command = [sys.executable, "-c", program, *words]
    pipe: Any = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        time.sleep(1.0)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.strip().splitlines()[-1] == STOPPED
    assert "Traceback" not in err


@pytest.mark.case(name="out-of-memory-at-start")
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("could not create a primitive")])
def test_a_process_without_memory_says_so_in_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("ldpruner.pruning.serialization.load_meta", full)
    code, _, err = run("operators", "zoo:satellite")
    assert (code, err.count("\n")) == (1, 1)
    assert "out of memory" in err


def test_the_module_runs_as_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ldpruner", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == f"ldpruner {__version__}\n"


DRY_RUNS = (
    ("operators", "MODEL"),
    ("score", "MODEL", "--run", "new"),
    ("select", "--run", "RUN", "--budget", "macs=0.9"),
    ("prune", "--run", "RUN"),
    ("run", "MODEL", "--run", "new", "--budget", "macs=0.9"),
    ("finetune", "--run", "RUN"),
    ("evaluate", "--run", "RUN"),
    ("bench", "MODEL"),
    ("apply", "RUN", "MODEL", "--out", "new"),
    ("diff", "RUN", "RUN"),
    ("recipe", "RECIPE"),
    ("demo",),
)


@pytest.mark.case(name="dry-runs")
@pytest.mark.parametrize("words", DRY_RUNS, ids=lambda words: words[0])
def test_a_dry_run_reads_no_weights_writes_nothing_and_answers_at_once(
    run: Run, folder: Path, scored: Path, tmp_path: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError

    place = Path(shutil.copytree(scored, tmp_path / "run"))
    select_run(place, Budget(parameters=0.8))
    shutil.copytree(folder, place / "pruned")
    (tmp_path / "r.yaml").write_text(f"model: {folder}\nrun: new\nbudget: {{macs: 0.9}}\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.chdir(tmp_path)
    for reader in ("ldpruner.pruning.opening.load", "ldpruner.pruning.serialization.load", "safetensors.safe_open"):
        monkeypatch.setattr(reader, fail)
    names = {"MODEL": folder, "RUN": place, "RECIPE": tmp_path / "r.yaml"}
    huge = ("--samples", "99999999999") if words[0] in ("score", "run", "finetune", "evaluate") else ()
    started = time.perf_counter()
    code, out, err = run(*(names.get(word, word) for word in words), *huge, "--dry-run", "--json")
    assert code == 0, err
    assert json.loads(out)
    assert time.perf_counter() - started < GENEROUS
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.extensive
@pytest.mark.slow
@pytest.mark.case(name="torchvision-lines")
def test_a_command_says_nothing_of_libraries_that_are_missing(folder: Path, tmp_path: Path) -> None:
    """In a new process, as the libraries say it when they are imported."""
    words = ("run", folder, "--run", tmp_path / "r", "--budget", "parameters=0.9", "--samples=2", "--steps=1")
    command = [sys.executable, "-m", "ldpruner", *map(str, words), "--targets", "mid_block*"]
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_VERBOSITY")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert not [line for line in lines if line.startswith("[") or "torchvision" in line or "Warning" in line]
