"""Executors: tasks are done in any order, by anyone, and the scores are the same."""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.pipelines.sampling import sample_latents
from ldpruner.scoring import worker as execution
from ldpruner.scoring.importance import Floats
from ldpruner.scoring.worker import LocalExecutor, Outcome, Task, Worker

PROBE = ldpruner.Probe(samples=16, steps=3)


class Backwards(LocalExecutor):
    """Takes all tasks at once, and does the last one first."""

    def run(self, tasks: Iterable[Task], path: Floats | None = None) -> Iterator[tuple[Task, Outcome]]:
        return super().run(reversed(list(tasks)), path)


def test_the_order_of_the_outcomes_changes_no_score(
    tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...]
) -> None:
    budgets = [ldpruner.Budget(macs=0.9)]
    usual, other = (
        ldpruner.score_operators(tiny, operators, PROBE, budgets=budgets, executor=executor)
        for executor in (None, Backwards(tiny))
    )
    assert [one.score for one in other.scores] == [one.score for one in usual.scores]
    assert other.denoiser_calls == usual.denoiser_calls


def test_a_worker_draws_what_a_pipeline_draws_and_tells_the_way_there(tiny: DiffusionPipeline) -> None:
    drawn = Worker(tiny)(Task("unet", PROBE, None, (0, 1), 2))
    assert drawn.latents is not None
    assert drawn.path is not None
    np.testing.assert_array_equal(drawn.latents, sample_latents(tiny, PROBE, [0, 1]).double().numpy())
    assert len(drawn.path) == drawn.calls == PROBE.steps
    np.testing.assert_array_equal(drawn.path[-1], drawn.latents[: drawn.path.shape[1]])


def test_a_draw_that_is_not_stopped_looks_at_the_device_only_at_its_end(
    tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[torch.Tensor] = []

    def look(latents: torch.Tensor) -> Floats:
        looked.append(latents)
        return np.asarray(latents.double().numpy())

    monkeypatch.setattr(execution, "_floats", look)
    Worker(tiny)(Task("unet", PROBE, operators[0].candidates[0].removal, (0, 1), 2))
    assert len(looked) == 1


def test_what_is_too_far_from_the_path_is_drawn_no_further(
    tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...]
) -> None:
    worker = Worker(tiny)
    path = worker(Task("unet", PROBE, None, (0,), 1)).path
    assert path is not None
    removal = operators[0].candidates[0].removal
    whole = worker(Task("unet", PROBE, removal, (0,), 1), path)
    limits = (0.0, math.inf)
    near, far = (worker(Task("unet", PROBE, removal, (0,), 1, limit), path) for limit in limits)
    assert (near.stopped, near.calls) == (0, 1)
    assert (far.stopped, far.calls) == (None, PROBE.steps)
    assert far.latents is not None
    assert whole.latents is not None
    np.testing.assert_array_equal(far.latents, whole.latents)
