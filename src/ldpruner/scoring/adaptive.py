"""Adaptive scoring: more samples for those modifications only that could still change the plan."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from diffusers import DiffusionPipeline
from numpy.typing import NDArray

from ldpruner.budget import Budget
from ldpruner.errors import BudgetError
from ldpruner.knapsack import Knapsack
from ldpruner.operators.discovery import Candidate, Operator
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.sampling import BATCH_SIZE
from ldpruner.scoring.estimates import SPREAD
from ldpruner.scoring.importance import Floats, Metric, power
from ldpruner.scoring.results import Scores
from ldpruner.scoring.runner import ScoringRun
from ldpruner.scoring.worker import Executor

logger = logging.getLogger(__name__)

DEFAULT_BUDGETS = (Budget(latency=0.65), Budget(latency=0.5), Budget(latency=0.35))  # where the user names no budget
CONFIDENCE = 2.0  # standard errors by which the logarithm of a cost may be off
MAX_SHARE = 1 / 20  # of the calls of exhaustive scoring, for one budget
MAX_SAMPLES = 3  # of each modification, on average, for one budget, if that is more
RELEVANT = 0.02  # of the highest priority: modifications below it get no more samples for now
NEGLIGIBLE = 0.001  # of what a budget asks to save: removals that save less are not sampled


def score_operators(  # noqa: PLR0913  (each is a choice of its own)
    pipeline: DiffusionPipeline,
    operators: Sequence[Operator] | None = None,
    probe: Probe | None = None,
    *,
    component: str | None = None,
    run: Path | str | None = None,
    metric: Metric = "mean_std",
    batch_size: int = BATCH_SIZE,
    budgets: Sequence[Budget] | None = DEFAULT_BUDGETS,
    executor: Executor | None = None,
) -> Scores:
    """Score the operators of a pipeline's denoiser by modifying each of them in turn.

    Afterwards the denoiser is bit-identical to before, also after an error or Ctrl-C.

    Args:
        pipeline: the original.
        operators: which; all of `find_operators` if None.
        probe: which latents to compare.
        component: which network, for pipelines with more than one denoiser.
        run: the run folder; what it already holds is not computed again.
        metric: the score (see `importance`).
        batch_size: how many samples at once; changes no score beyond rounding.
        budgets: for which the scores shall give the right plan; None samples every modification on all samples, as in
            the paper.
        executor: who samples; this process if None.

    Raises:
        NonFiniteLatents: the original's own latents are not finite.
        RunStoreError: the run folder is another model's or probe's.
    """
    with ScoringRun(
        pipeline,
        operators,
        probe,
        component=component,
        run=run,
        metric=metric,
        batch_size=batch_size,
        executor=executor,
    ) as scoring:
        for _ in scoring if budgets is None else AdaptiveScorer(scoring, budgets):
            pass
        return scoring.finish()


class AdaptiveScorer:
    """Scores every modification on one sample, and on more samples those that decide what a budget removes.

    Round by round, two plans are compared: the plan for the costs as estimated, and the plan if its own removals cost
    as much, and all others as little, as the errors of the estimates allow. Removals in which the two differ get twice
    as many samples, the most contested first, until the plans agree or the samples are used up. All modifications are
    compared on the same samples (common random numbers). Decisions depend on stored samples alone, so a run that was
    killed and resumed comes to the same scores.

    Sources: Chen et al., Combinatorial Pure Exploration of Multi-Armed Bandits, NeurIPS 2014 (CLUCB); Jamieson and
    Talwalkar, Non-stochastic Best Arm Identification, AISTATS 2016 (successive doubling); Maron and Moore, NeurIPS
    1994 (sampling only what is still contested).

    An iterable whose length grows: batches that were sampled, and batches that are known to follow.

    Args:
        scoring: the run.
        budgets: for which the scores shall give the right plan; budgets that cannot be reached are left out.
    """

    def __init__(self, scoring: ScoringRun, budgets: Sequence[Budget] = DEFAULT_BUDGETS) -> None:
        if isinstance(budgets, Budget) or not budgets:
            raise BudgetError(f"budgets={budgets!r}: give a list of them, or None to score everything on all samples")
        self.scoring, self._known = scoring, scoring.scores()  # for what removals save
        everything = [self._known.knapsack(self._known.scores, budget) for budget in budgets]
        matters = np.any([_matters(knapsack) for knapsack in everything], axis=0)
        self._scores = list(itertools.compress(self._known.scores, matters))
        self._knapsacks = [self._known.knapsack(self._scores, budget) for budget in budgets]
        self._batches = len(scoring.sampler.missing(self._counts(self._first)))

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[str]:
        """Samples; yields the operator's name after each batch."""
        sampler, samples = self.scoring.sampler, self._first
        yield from sampler.sample(self._counts(samples))
        while (more := self._doubled(samples, self._priorities(samples))).sum() > samples.sum():
            logger.info("%d of %d modifications get more samples", np.count_nonzero(more > samples), len(samples))
            self._batches += len(sampler.missing(self._counts(more)))
            yield from sampler.sample(self._counts(more))
            samples = more

    @property
    def _first(self) -> NDArray[np.int64]:
        return np.ones(len(self._scores), dtype=np.int64)

    @property
    def _allowed(self) -> int:
        return allowed_samples(self.scoring.probe.samples, len(self._known.scores), len(self._knapsacks))

    def _counts(self, samples: NDArray[np.int64]) -> dict[Candidate, int]:
        return dict(zip([score.candidate for score in self._scores], samples.tolist(), strict=True))

    def _priorities(self, samples: NDArray[np.int64]) -> Floats:
        """[modifications] which share of a plan's cost is uncertain because of each: its maximum over the budgets."""
        metric = self.scoring.metric
        costs = self.scoring.sampler.scores(self._counts(samples), metric) ** power(metric)
        finite = np.where(np.isfinite(costs), costs, 0.0)
        errors = CONFIDENCE * SPREAD * np.sqrt(1 / samples - 1 / self.scoring.probe.samples)
        priorities = np.zeros(len(costs))
        for knapsack in self._knapsacks:
            plan = knapsack.solve(costs, relaxed=True)
            if plan is None or not plan @ finite:
                continue
            challenger = knapsack.solve(costs * np.exp(np.where(plan > 0.5, errors, -errors)), relaxed=True)
            assert challenger is not None
            priorities = np.maximum(priorities, np.abs(plan - challenger) * finite * errors / (plan @ finite))
        return priorities

    def _doubled(self, samples: NDArray[np.int64], priorities: Floats) -> NDArray[np.int64]:
        """[modifications] twice the samples of those with the highest priorities, as far as allowed."""
        more = samples.copy()
        for place in np.argsort(-priorities, kind="stable"):
            if priorities[place] <= RELEVANT * priorities.max():
                break
            before = more[place]
            more[place] = min(2 * before, self.scoring.probe.samples)
            if more.sum() + more.max() > self._allowed:
                more[place] = before
        return more


def allowed_samples(samples: int, modifications: int, budgets: int) -> int:
    """How many samples adaptive scoring may take in all, those of the baseline included.

    Args:
        samples: of the probe.
        modifications: how many there are.
        budgets: how many there are; they share the first sample of each modification.
    """
    each = 1 + budgets * (max(MAX_SHARE * samples, MAX_SAMPLES) - 1)
    return int(min(samples, each) * (1 + modifications))


def _matters(knapsack: Knapsack) -> NDArray[np.bool_]:
    """[items] which save enough to matter; all, where the budget cannot be met by these alone."""
    enough = np.any(knapsack.savings >= NEGLIGIBLE * knapsack.needs[:, None], axis=0)
    feasible = knapsack.solve(np.where(enough, 0.0, np.inf), relaxed=True) is not None
    return np.asarray(enough if feasible else np.ones(len(knapsack), dtype=np.bool_))
