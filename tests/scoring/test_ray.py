"""Scoring on Ray's workers: the same scores, and nothing lost when workers are killed or fail."""

import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.errors import ExecutionError, PipelineNotFound
from ldpruner.scoring.ray import RayExecutor
from ldpruner.scoring.runner import ScoringRun
from ldpruner.scoring.worker import Task

pytestmark = pytest.mark.extensive

PROBE = ldpruner.Probe(samples=16, steps=2)
FEW = 12  # operators


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """One Ray for all tests; its workers do not stand back for other work on the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        with RayExecutor(os.getpid):  # whoever starts Ray also stops it
            yield


@pytest.fixture(scope="module")
def executor(folder: Path, ray: None) -> Iterator[RayExecutor]:
    with RayExecutor(functools.partial(ldpruner.load, folder)) as one:
        yield one


@pytest.fixture(scope="module")
def local(tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...]) -> ldpruner.Scores:
    return ldpruner.score_operators(tiny, operators[:FEW], PROBE, budgets=None)


def workers() -> list[psutil.Process]:
    """The processes in which Ray's workers do their tasks."""
    return [one for one in psutil.Process().children(recursive=True) if "ray::_Actor" in " ".join(one.cmdline())]


def values(scores: ldpruner.Scores) -> list[float]:
    return [one.score for one in scores.scores]


def test_a_missing_cluster_is_one_line() -> None:
    started = time.monotonic()
    with pytest.raises(ExecutionError, match="no Ray cluster at"):
        RayExecutor(os.getpid, "127.0.0.1:1")
    assert time.monotonic() - started < 60


# Before the others, whose workers hold all there is.


@pytest.mark.parametrize("needs", [pytest.param({"cpus": 4096}, marks=pytest.mark.extensive), {"gpus": 64.0}])
def test_a_worker_that_no_node_has_room_for_is_one_line(ray: None, needs: dict[str, Any]) -> None:
    started = time.monotonic()
    task = Task("unet", PROBE, None, (0,), 1)
    with RayExecutor(os.getpid, patience=0.5, **needs) as executor, pytest.raises(ExecutionError) as caught:
        list(executor.run([task]))
    assert time.monotonic() - started < 10
    assert "\n" not in str(caught.value)
    (name, wanted), total = next(iter(needs.items())), os.cpu_count()
    assert f"{wanted:g} {name[:3].upper()}" in str(caught.value)
    assert f"whole cluster has {total} CPU and 0 GPU" in str(caught.value)


def test_a_pipeline_that_workers_cannot_open_raises_as_here(ray: None, tmp_path: Path) -> None:
    task = Task("unet", PROBE, None, (0,), 1)
    opener = functools.partial(ldpruner.load, tmp_path / "nowhere")
    with RayExecutor(opener) as executor, pytest.raises(PipelineNotFound) as caught:
        list(executor.run([task]))
    assert "nowhere" in str(caught.value)


def test_workers_that_always_die_end_the_run(ray: None) -> None:
    task = Task("unet", PROBE, None, (0,), 1)
    with RayExecutor(functools.partial(os._exit, 1)) as executor, pytest.raises(ExecutionError) as caught:
        list(executor.run([task]))
    assert "died 4 times" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_workers_come_to_the_same_scores_to_the_bit(
    tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], executor: RayExecutor, local: ldpruner.Scores
) -> None:
    scores = ldpruner.score_operators(tiny, operators[:FEW], PROBE, budgets=None, executor=executor)
    assert values(scores) == values(local)
    assert scores.denoiser_calls == local.denoiser_calls
    assert {one.pid for one in workers()}.isdisjoint({os.getpid()})


def test_adaptive_scoring_on_workers_is_that_of_this_process(
    folder: Path, operators: tuple[ldpruner.Operator, ...], executor: RayExecutor
) -> None:
    # opened as workers open it: where weights lie in memory decides the last bit of a single sample
    opened, budgets = ldpruner.load(folder), [ldpruner.Budget(macs=0.95)]
    here, there = (
        ldpruner.score_operators(opened, operators, PROBE, budgets=budgets, executor=one) for one in (None, executor)
    )
    assert values(there) == values(here)
    assert [one.samples for one in there.scores] == [one.samples for one in here.scores]


def test_workers_that_are_killed_are_restarted(
    tiny: DiffusionPipeline,
    operators: tuple[ldpruner.Operator, ...],
    executor: RayExecutor,
    local: ldpruner.Scores,
) -> None:
    killed: list[int] = []
    with ScoringRun(tiny, operators[:FEW], PROBE, executor=executor) as scoring:
        for done, _ in enumerate(scoring):
            if done % 4 == 0 and len(killed) < 3 and (there := workers()):
                there[0].kill()
                killed.append(there[0].pid)
        scores = scoring.scores()
    assert len(killed) == 3
    assert values(scores) == values(local)
    assert scores.denoiser_calls == local.denoiser_calls


def test_workers_that_died_while_they_had_nothing_to_do_are_restarted(executor: RayExecutor) -> None:
    tasks = [Task("unet", PROBE, None, (sample,), 1) for sample in range(16)]
    assert len(list(executor.run(tasks))) == 16
    idle = workers()
    for worker in idle:
        worker.kill()
    psutil.wait_procs(idle, timeout=10)
    ((_, outcome),) = executor.run(tasks[:1])
    assert outcome.latents is not None


def test_a_run_that_was_left_is_gone_on_with(
    tiny: DiffusionPipeline,
    operators: tuple[ldpruner.Operator, ...],
    executor: RayExecutor,
    local: ldpruner.Scores,
    tmp_path: Path,
) -> None:
    with ScoringRun(tiny, operators[:FEW], PROBE, run=tmp_path, executor=executor) as scoring:
        batches = iter(scoring)
        for _ in range(4):
            next(batches)
    with ScoringRun(tiny, operators[:FEW], PROBE, run=tmp_path, executor=executor) as scoring:
        list(scoring)
        assert values(scoring.scores()) == values(local)


def test_what_others_have_done_comes_before_a_failure(executor: RayExecutor) -> None:
    tasks = [Task(name, PROBE, None, (0,), 1) for name in ("unet", "unet", "nothing")]
    outcomes = executor.run(tasks)
    for _ in range(2):
        next(outcomes)
        time.sleep(3)  # until all are finished
    with pytest.raises(KeyError, match="nothing"):
        next(outcomes)
