"""Trying plans as a whole: where much is removed, what each removal does alone does not add up."""

import itertools
import logging
import math
from collections.abc import Sequence

import numpy as np
from diffusers import DiffusionPipeline
from numpy.typing import NDArray

from ldpruner.budgets import Budget
from ldpruner.execution import Executor, LocalExecutor, Task
from ldpruner.importance import Floats, importance, moments
from ldpruner.knapsack import Problem
from ldpruner.latents import largest_batch
from ldpruner.operators import Removal
from ldpruner.scores import Scores

logger = logging.getLogger(__name__)

TRIES = 16  # plans
SAMPLES = 8  # that each is drawn on
SPREAD = 0.5  # of the logarithms of damages, from one plan to the next


def refine(
    pipeline: DiffusionPipeline,
    scores: Scores,
    budget: Budget,
    *,
    tries: int = TRIES,
    executor: Executor | None = None,
) -> Scores:
    """Corrects damages so that `select` finds the best of several plans that were drawn as a whole.

    An evolution strategy (Rechenberg 1973): damages are multiplied by random factors, the plan that is best for them
    is drawn, and if its latents are nearer to the untouched ones, the factors are kept for the next.

    Args:
        pipeline: the untouched pipeline.
        scores: its own.
        budget: that the plans meet.
        tries: how many plans to draw beside the one that `select` finds now; none is drawn twice.
        executor: what draws; this process if None.

    Returns:
        The scores with other corrections, or the same where no plan was better.

    Raises:
        BudgetError: the budget cannot be reached.
    """
    removable = [one for one in scores.scores if math.isfinite(one.score)]
    problem = Problem(scores, removable, budget)
    problem.check_reachable()
    trials = _Trials(pipeline, scores, problem, executor or LocalExecutor(pipeline))
    generator, damages = np.random.default_rng(scores.probe.seed), problem.damages
    factors, first = np.ones(len(damages)), trials.distance(problem.solve(damages))
    least = first
    for _ in range(tries):
        others = factors * np.exp(SPREAD * generator.normal(size=len(damages)))
        distance = trials.distance(problem.solve(damages * others))
        if distance < least:
            factors, least = others, distance
    logger.info("of %d plans the best moves the latents by %.4g, the first one by %.4g", trials.count, least, first)
    corrections = {id(one): factor for one, factor in zip(removable, factors, strict=True)}
    corrected = (
        one.model_copy(update={"correction": one.correction * corrections.get(id(one), 1.0)}) for one in scores.scores
    )
    return scores.model_copy(update={"scores": tuple(corrected), "plans_tried": scores.plans_tried + trials.count})


class _Trials:
    """How far whole plans take the latents of the probe's first samples; each is drawn once."""

    def __init__(self, pipeline: DiffusionPipeline, scores: Scores, problem: Problem, executor: Executor) -> None:
        self._scores, self._problem, self._executor = scores, problem, executor
        self._batch = largest_batch(pipeline, scores.probe, SAMPLES)
        self._known: dict[bytes, float] = {}
        untouched = self._drawn(())
        assert untouched is not None
        self._untouched = untouched

    @property
    def count(self) -> int:
        return len(self._known)

    def distance(self, plan: NDArray[np.bool_]) -> float:
        """The score of a plan, as that of a single removal; infinity if it cannot be drawn."""
        key = plan.tobytes()
        if key not in self._known:
            chosen = itertools.compress(self._problem.removable, plan)
            self._known[key] = self._scored(self._drawn([one.candidate.removal for one in chosen]))
        return self._known[key]

    def _scored(self, latents: Floats | None) -> float:
        if latents is None:
            return math.inf
        beside, drawn = (moments(one, self._untouched) for one in (self._untouched, latents))
        return importance(beside, drawn, self._scores.metric)

    def _drawn(self, removals: Sequence[Removal]) -> Floats | None:
        probe = self._scores.probe
        samples = tuple(range(min(SAMPLES, probe.samples)))
        task = Task(self._scores.component, probe, tuple(removals), samples, self._batch)
        ((_, outcome),) = self._executor.run([task])
        return outcome.latents
