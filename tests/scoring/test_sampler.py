"""Sampling: what is missing, in which order, and what is never sampled twice."""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.operators.discovery import Candidate
from ldpruner.scoring.sampler import Sampler
from ldpruner.scoring.store import RunStore
from ldpruner.scoring.worker import LocalExecutor, Outcome, Task


class CountingExecutor(LocalExecutor):
    """Samples in this process, and lists the tasks."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        super().__init__(pipeline)
        self.tasks: list[Task] = []

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Outcome]]:
        for task, outcome in super().run(tasks):
            self.tasks.append(task)
            yield task, outcome


@pytest.fixture
def executor(tiny: DiffusionPipeline) -> CountingExecutor:
    return CountingExecutor(tiny)


@pytest.fixture
def sampler(executor: CountingExecutor) -> Sampler:
    return Sampler("unet", ldpruner.Probe(samples=4, steps=2), RunStore(None, {}), executor, batch_size=2)


@pytest.fixture
def candidates(operators: tuple[ldpruner.Operator, ...]) -> list[Candidate]:
    return [operator.candidates[0] for operator in operators[:2]]


def test_the_baseline_comes_first_and_then_batches_in_turn(sampler: Sampler, candidates: list[Candidate]) -> None:
    first, second = candidates
    batches = [(batch.candidate, batch.samples) for batch in sampler.missing({first: 3, second: 9})]
    assert batches == [
        (None, range(2)),
        (None, range(2, 4)),
        (first, range(2)),
        (second, range(2)),
        (first, range(2, 3)),
        (second, range(2, 4)),  # the probe has no more
    ]


def test_nothing_is_sampled_twice(sampler: Sampler, executor: CountingExecutor, candidates: list[Candidate]) -> None:
    first, second = candidates
    list(sampler.sample({first: 2}))
    list(sampler.sample({first: 3, second: 1}))
    sampled = [(task.removal and task.removal.operator, sample) for task in executor.tasks for sample in task.samples]
    assert len(sampled) == len(set(sampled)) == 3 + 3 + 1
    assert (sampler.count(first), sampler.count(second)) == (3, 1)
    assert sampler.missing({first: 3, second: 1}) == []


def test_the_score_of_what_was_not_sampled_is_infinite(sampler: Sampler, candidates: list[Candidate]) -> None:
    first, second = candidates
    list(sampler.sample({first: 2}))
    scores = sampler.scores({first: 2, second: 2}, "mse")
    assert np.isfinite(scores[0])
    assert scores[1] == math.inf
