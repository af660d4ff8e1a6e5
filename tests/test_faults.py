"""No finished work is lost: a run is killed, its disk is full, its file is torn."""

import multiprocessing
import random
import resource
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest
import torch

import ldpruner
from ldpruner.errors import LdPrunerError, StorageError
from ldpruner.scoring.adaptive import AdaptiveScorer
from ldpruner.scoring.runner import ScoringRun
from ldpruner.scoring.store import RunStore

PROBE = ldpruner.Probe(samples=8, steps=2)
BUDGETS = (ldpruner.Budget(macs=0.5),)
KILLS = 20
Row = tuple[str, str, int]
Start = Callable[..., tuple[ForkServerProcess, Connection]]


def score(folder: Path, run: Path, pipe: Connection | None = None, largest_file: int | None = None) -> ldpruner.Scores:
    """Scores into a run folder; the pipe gets a message when it begins, and its error."""
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    torch.set_num_threads(1)
    try:
        with ScoringRun(ldpruner.load(folder), None, PROBE, run=run) as scoring:
            if pipe is not None:
                pipe.send("begun")
            for _ in AdaptiveScorer(scoring, BUDGETS):
                pass
            return scoring.scores()
    except LdPrunerError as error:
        if pipe is None:
            raise
        pipe.send(error)
        raise SystemExit(1) from error


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    """Processes are forked from one that has imported everything, and started no thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_faults"])
    return context


@pytest.fixture
def start(
    server: ForkServerContext, folder: Path, tmp_path: Path
) -> Callable[..., tuple[ForkServerProcess, Connection]]:
    """Starts scoring in another process, and waits until it begins."""

    def started(largest_file: int | None = None) -> tuple[ForkServerProcess, Connection]:
        here, there = server.Pipe()
        process = server.Process(target=score, args=(folder, tmp_path, there, largest_file))
        process.start()
        there.close()
        assert here.recv() == "begun"
        return process, here

    return started


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ldpruner.Scores, Path]:
    """The scores without any fault, and their run."""
    run = tmp_path_factory.mktemp("whole")
    return score(folder, run), run


def rows(run: Path) -> set[Row]:
    """The samples that are finished, of each modification and of the baseline."""
    with closing(sqlite3.connect(run / "run.sqlite")) as database:
        curves = database.execute("SELECT operator, modification, length(squared_errors) / 8 FROM curves").fetchall()
        baseline = database.execute("SELECT 'baseline', '', count(*) FROM baseline").fetchall()
    return {(*key, sample) for *key, count in [*curves, *baseline] for sample in range(count)}


def assert_same(scores: ldpruner.Scores, whole: ldpruner.Scores) -> None:
    assert [(score.score, score.samples) for score in scores.scores] == [
        (score.score, score.samples) for score in whole.scores
    ]
    assert scores.denoiser_calls == whole.denoiser_calls


@pytest.mark.extensive
def test_a_killed_run_comes_to_the_same_scores(
    start: Start, folder: Path, whole: tuple[ldpruner.Scores, Path], tmp_path: Path
) -> None:
    instants, count = random.Random(0), len(rows(whole[1]))
    _same_costs(whole[1], tmp_path)
    finished: set[Row] = set()
    for _ in range(KILLS):
        process, pipe = start()
        wanted = len(finished) + instants.uniform(0, count / KILLS)
        while len(rows(tmp_path)) < wanted:
            time.sleep(instants.uniform(0, 0.01))
        process.kill()
        process.join()
        pipe.close()
        assert process.exitcode == -signal.SIGKILL
        now = rows(tmp_path)
        assert finished <= now  # nothing was lost
        finished = now
    assert 0 < len(finished) < count
    assert_same(score(folder, tmp_path), whole[0])
    assert finished < rows(tmp_path)


@pytest.mark.extensive
def test_a_full_disk_is_one_line_and_finished_work_is_kept(
    start: Start,
    folder: Path,
    whole: tuple[ldpruner.Scores, Path],
    tmp_path: Path,
) -> None:
    _same_costs(whole[1], tmp_path)
    process, pipe = start(largest_file=200_000)
    error = pipe.recv()
    process.join()
    assert isinstance(error, StorageError)
    assert str(tmp_path) in str(error)
    assert "\n" not in str(error)
    finished = rows(tmp_path)
    assert 0 < len(finished) < len(rows(whole[1]))
    assert_same(score(folder, tmp_path), whole[0])
    assert finished < rows(tmp_path)


@pytest.mark.extensive
def test_a_torn_last_page_loses_only_what_was_written_last(
    folder: Path, whole: tuple[ldpruner.Scores, Path], tmp_path: Path
) -> None:
    _same_costs(whole[1], tmp_path)
    torn = tmp_path / "torn"
    torn.mkdir()
    with ScoringRun(ldpruner.load(folder), None, PROBE, run=tmp_path) as scoring:
        rounds = iter(AdaptiveScorer(scoring, BUDGETS))
        for _ in range(20):
            next(rounds)
        for file in ("run.sqlite", "run.sqlite-wal"):  # as a machine leaves them that loses its power
            shutil.copy(tmp_path / file, torn)
    log = torn / "run.sqlite-wal"
    log.write_bytes(log.read_bytes()[:-1000])
    assert rows(torn) < rows(tmp_path)
    assert_same(score(folder, torn), whole[0])


def _same_costs(there: Path, here: Path) -> None:
    """Latency is measured once for a run; another measurement gives other scores."""
    with RunStore(there) as finished:
        costs, identity = finished.fact("costs"), finished.fact("identity")
    with RunStore(here, identity) as store:
        store.set_fact("costs", costs)
