"""The command `serve`."""

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ldpruner import Budget
from ldpruner.cli import STOPPED
from ldpruner.workflow import prune_run, select_run
from tests.cli.conftest import Run

COMMAND = [sys.executable, "-m", "ldpruner", "serve", "--port", "0", "--json", "--quiet", "--run"]
MANY = 900  # steps


@pytest.fixture(scope="module")
def pruned(scored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a pruned pipeline; not to be changed."""
    place = Path(shutil.copytree(scored, tmp_path_factory.mktemp("serve") / "run"))
    select_run(place, Budget(parameters=0.8))
    prune_run(place)
    return place


@contextlib.contextmanager
def started(run: Path, temporary: Path) -> Iterator["subprocess.Popen[str]"]:
    """The command in a process of its own, with its own folder for temporary files."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "TMPDIR": str(temporary)}
    with subprocess.Popen([*COMMAND, str(run)], text=True, env=environment, **streams) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.extensive
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_a_sample_in_the_middle_and_leaves_no_files(
    pruned: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with started(pruned, tmp_path) as process:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], 60)
        assert ready
        (address,) = json.loads(process.stdout.readline()).values()
        api = f"{address}gradio_api/call/compare"
        event = httpx.post(api, json={"data": ["", "1", MANY, "pruned"]}).json()["event_id"]
        with httpx.stream("GET", f"{api}/{event}") as answer:
            assert "generating" in next(answer.iter_lines())
            process.send_signal(number)
            out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "")
    assert err.splitlines()[-1] == STOPPED
    assert "Traceback" not in err
    assert not list(tmp_path.glob("ldpruner-*"))


@pytest.mark.filterwarnings("ignore")  # of Gradio
def test_it_serves_until_ctrl_c(run: Run, pruned: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    pages: list[str] = []

    def visit() -> None:
        while not pages:
            with contextlib.suppress(httpx.HTTPError):
                pages.append(httpx.get(f"http://127.0.0.1:{port}/", timeout=60).text)
        time.sleep(1)  # the address is printed after the server is up
        os.kill(os.getpid(), signal.SIGINT)

    visitor = threading.Thread(target=visit)
    visitor.start()
    code, out, err = run("serve", "--run", pruned, "--port", str(port), "--json", "--quiet")
    visitor.join()
    assert (code, err) == (130, f"{STOPPED}\n")
    assert json.loads(out) == {"address": f"http://127.0.0.1:{port}/"}
    assert "Live comparison" in pages[0]


def test_a_dry_run_opens_nothing(run: Run, pruned: Path) -> None:
    code, out, err = run("serve", "--run", pruned, "--guidance", "2", "--dry-run")
    assert code == 0, err
    shown = json.loads(out)
    assert (shown["host"], shown["port"], shown["probe"]["guidance"]) == ("127.0.0.1", 7860, 2)
    assert shown["compared"] == str(pruned / "pruned")


def test_a_missing_pipeline_says_what_to_run(run: Run, scored: Path, tmp_path: Path) -> None:
    code, out, err = run("serve", "--run", scored)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert f"ldpruner prune --run {scored}" in err
    code, out, err = run("serve", "--run", tmp_path / "<b>[/]")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "ldpruner score" in err


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (("--port", "65536"), 2, "equal to 65535"),
        (("--port", "x"), 2, "valid integer"),
        (("--host", "nowhere.invalid"), 1, "cannot listen on nowhere.invalid"),
        (("--device", "tpu9"), 1, "tpu9"),
        (("--pipeline-arg", "colour=1"), 1, "colour"),
    ],
)
def test_a_mistake_is_one_line(run: Run, pruned: Path, words: tuple[str, ...], code: int, problem: str) -> None:
    status, out, err = run("serve", "--run", pruned, "--quiet", "--port", "0", *words)
    assert (status, out, err.count("\n")) == (code, "", 1)
    assert problem in err


def test_a_missing_gradio_is_one_line(run: Run, pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, out, err = run("serve", "--run", pruned)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert 'pip install "ld-pruner[serve]"' in err
