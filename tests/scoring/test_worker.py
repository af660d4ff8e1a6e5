"""Executors: tasks are done in any order, by anyone, and the scores are the same."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.budget import Budget
from ldpruner.pipelines.sampling import sample_latents
from ldpruner.scoring.worker import LocalExecutor, Outcome, Task, Worker

PROBE = ldpruner.Probe(samples=16, steps=3)


class Backwards(LocalExecutor):
    """Takes all tasks at once, and does the last one first."""

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Outcome]]:
        return super().run(reversed(list(tasks)))


@pytest.mark.parametrize(
    "budgets", [[Budget(macs=0.9)], pytest.param(None, marks=pytest.mark.extensive)], ids=["adaptive", "exhaustive"]
)
def test_the_order_of_the_outcomes_changes_no_score(
    tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], budgets: Sequence[Budget] | None
) -> None:
    usual, other = (
        ldpruner.score_operators(tiny, operators[::4], PROBE, budgets=budgets, batch_size=4, executor=executor)
        for executor in (None, Backwards(tiny))
    )
    assert [one.score for one in other.scores] == [one.score for one in usual.scores]
    assert other.denoiser_calls == usual.denoiser_calls


def test_a_worker_samples_what_a_pipeline_samples(tiny: DiffusionPipeline) -> None:
    outcome = Worker(tiny)(Task("unet", PROBE, None, (0, 1), 2))
    assert outcome.latents is not None
    assert outcome.calls == PROBE.steps
    np.testing.assert_array_equal(outcome.latents, sample_latents(tiny, PROBE, [0, 1]).double().numpy())
