"""Commands run in this process on a tiny pipeline."""

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ldpruner import Probe, cli
from ldpruner.pruning.opening import open_pipeline
from ldpruner.workflow import score_run

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


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Commands attach their log to standard error."""
    logger = logging.getLogger("ldpruner")
    handlers, level = list(logger.handlers), logger.level
    yield
    for handler in set(logger.handlers) - set(handlers):
        logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture(scope="session")
def scored(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with scores; not to be changed."""
    run = tmp_path_factory.mktemp("scored") / "run"
    score_run(open_pipeline(folder), run=run, probe=Probe(samples=2, steps=2), model=str(folder))
    return run
