"""Racing: all modifications on few samples first, then more of those only that could still change the selection."""

import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from diffusers import DiffusionPipeline

from ldpruner.blocks import FEWEST
from ldpruner.budgets import Budget
from ldpruner.errors import BudgetError
from ldpruner.execution import Executor, Task
from ldpruner.importance import Floats, Metric, power
from ldpruner.knapsack import Problem
from ldpruner.operators import Candidate, Operator
from ldpruner.probe import Probe
from ldpruner.scores import Forecast, Scores
from ldpruner.scoring import BATCH, Scoring

logger = logging.getLogger(__name__)

USUAL = (Budget(latency=0.65), Budget(latency=0.5), Budget(latency=0.35))  # raced for where none is named
SETTLED = 0.0005  # of a plan's damage: what another choice may be expected to spare
MORE = 2  # samples of each modification, on average, that a budget may have drawn beyond the first
MATTERS = 0.1  # of what the most contested removal may spare: where less is at stake, none is drawn again
LITTLE = 0.001  # of what a budget asks to save: removals that save less are not drawn
FAR = 2.0  # times as far as all of a plan takes the latents, a removal is not drawn on


def score_operators(  # noqa: PLR0913  (each is a choice of its own)
    pipeline: DiffusionPipeline,
    operators: Sequence[Operator] | None = None,
    probe: Probe | None = None,
    *,
    component: str | None = None,
    run: Path | str | None = None,
    metric: Metric = "mean_std",
    batch_size: int = BATCH,
    budgets: Sequence[Budget] | None = USUAL,
    executor: Executor | None = None,
) -> Scores:
    """Scores the operators of a pipeline's denoiser by modifying each of them in turn.

    The denoiser is afterwards as it was before, to the bit, also after an error or Ctrl-C.

    Args:
        pipeline: the untouched pipeline.
        operators: which; all of `find_operators` if None.
        probe: which latents to compare.
        component: which network, for pipelines with more than one denoiser.
        run: the run folder; what it already holds is not computed again.
        metric: the score (see `importance`).
        batch_size: how many samples to draw at once; changes no score beyond rounding.
        budgets: for which the scores shall be sure enough to select; None draws all modifications on all samples, as
            in the paper.
        executor: what draws; this process if None.

    Raises:
        NonFiniteLatents: the untouched pipeline's own latents are not finite.
        LedgerError: the run folder is another model's or probe's.
    """
    with Scoring(
        pipeline,
        operators,
        probe,
        component=component,
        run=run,
        metric=metric,
        batch_size=batch_size,
        executor=executor,
    ) as scoring:
        for _ in scoring if budgets is None else Race(scoring, budgets):
            pass
        return scoring.scores()


class Race:
    """A scoring run that ends when the selection is settled or the probe is used up.

    An iterable whose length grows while it goes on: draws made, and draws that are known to follow.

    Args:
        scoring: what draws.
        budgets: for which to settle the selection; those that cannot be reached are left out.
    """

    def __init__(self, scoring: Scoring, budgets: Sequence[Budget] = USUAL) -> None:
        self.scoring, self.budgets = scoring, budgets or USUAL
        self._known = scoring.scores(first={})  # what removals save, before anything is drawn
        order = sorted(self._worthwhile(), key=lambda one: one.macs, reverse=True)
        samples, half = min(FEWEST, scoring.probe.samples), -(-len(order) // 2)
        self._first, self._others = (dict.fromkeys(part, samples) for part in (order[:half], order[half:]))
        self._draws = sum(len(scoring.drawing.draws(part)) for part in (self._first, self._others))

    def __len__(self) -> int:
        return self._draws

    def __iter__(self) -> Iterator[str]:
        """Draws; yields the operator's name after each draw."""
        drawing, probed = self.scoring.drawing, self.scoring.probe.samples
        yield from drawing.draw(self._first)
        yield from drawing.draw(self._others, self._limit() if probed > FEWEST else math.inf)
        drawn = {**self._first, **self._others}
        for stage in itertools.count():
            # a run that is resumed has drawn more already, and shall come to the same choice
            scores, doubts = self.scoring.scores(first=drawn), self.scoring.doubts(drawn)
            wanted = self._affordable(drawn, self._contested(scores, doubts, stage))
            wanted = wanted or self._affordable(drawn, self._unknown(scores))
            if not wanted:
                return
            drawn |= wanted
            self._draws += len(drawing.draws(wanted))
            logger.info("%d of %d modifications are drawn again", len(wanted), len(drawn))
            yield from drawing.draw(wanted)

    def forecast(self, *, exhaustive: bool = False) -> Forecast:
        """What the run will take, or that of all modifications on all samples, from one draw and the costs."""
        scoring, costs = self.scoring, self._known.costs
        task = Task(scoring.denoiser.component, scoring.probe, None, (0,), 1)
        ((_, drawn),) = scoring.drawing.executor.run([task])
        first = {**self._first, **self._others}
        everything = scoring.probe.samples * (1 + len(self._known.scores))
        least = everything if exhaustive else max(first.values(), default=0) + sum(first.values())
        most = everything if exhaustive else min(everything, self._allowed)
        return Forecast(
            operators=len(scoring.operators),
            modifications=len(self._known.scores),
            denoiser_calls=(least * drawn.calls, most * drawn.calls),
            seconds=(least * costs.latency_ms / 1000, most * costs.latency_ms / 1000),
        )

    @property
    def _allowed(self) -> int:
        """Samples that may be drawn in all, untouched ones too; a plan of which some left its path may take more."""
        return (FEWEST + MORE * len(self.budgets)) * (1 + len(self._known.scores))

    def _worthwhile(self) -> list[Candidate]:
        """Those that save enough to matter for some budget; all, where one cannot be met without the others."""
        known, matter = self._known, np.zeros(len(self._known.scores), dtype=bool)
        for budget in self.budgets:
            problem = Problem(known, known.scores, budget)
            enough = np.any(problem.savings >= LITTLE * problem.needs[:, None], axis=0)
            if not _is_reachable(Problem(known, list(itertools.compress(known.scores, enough)), budget)):
                return self.scoring.candidates
            matter |= enough
        return [one.candidate for one in itertools.compress(known.scores, matter)]

    def _limit(self) -> float:
        """How far latents may go, as a mean square: further, one removal is worse than all of a plan that is known.

        Infinity, where a budget cannot be met with what is known.
        """
        scores = self.scoring.scores(first=self._first)
        removable = [one for one in scores.scores if math.isfinite(one.score)]
        totals = []
        for budget in self.budgets:
            if not _is_reachable(Problem(scores, scores.scores, budget)):
                continue
            problem = Problem(scores, removable, budget)
            try:
                chosen = itertools.compress(removable, problem.solve(problem.damages))
            except BudgetError:
                return math.inf
            totals.append(sum(self._squared_distance(one.candidate) for one in chosen))
        return FAR * max(totals, default=math.inf)

    def _squared_distance(self, candidate: Candidate) -> float:
        curve = self.scoring.drawing.curve(candidate, self.scoring.metric)
        return float(curve.first(self._first[candidate]).distances.mean()) if curve is not None else math.inf

    def _contested(self, scores: Scores, doubts: Mapping[Candidate, float], stage: int) -> dict[Candidate, float]:
        """What is at stake in those that a plan depends on and that are not sure enough; the most first."""
        stakes = dict[Candidate, float]()
        for problem in self._problems(scores):
            known = [one.candidate for one in problem.removable]
            errors = power(scores.metric) * np.array([doubts[one] for one in known])
            for one, stake in zip(known, _at_stake(problem, errors, stage), strict=True):
                stakes[one] = max(stakes.get(one, 0.0), stake)
        contested = sorted(stakes.items(), key=lambda one: -one[1])
        return {one: stake for one, stake in contested if stake > 0}

    def _unknown(self, scores: Scores) -> dict[Candidate, float]:
        """Those of a plan that were stopped on the way; everything is at stake, as their scores are least ones."""
        plans = [itertools.compress(one.removable, one.solve(one.damages)) for one in self._problems(scores)]
        return {one.candidate: math.inf for one in itertools.chain.from_iterable(plans) if one.stopped}

    def _problems(self, scores: Scores) -> list[Problem]:
        """One for each budget that can be reached."""
        removable = [one for one in scores.scores if math.isfinite(one.score)]
        return [one for budget in self.budgets if _is_reachable(one := Problem(scores, removable, budget))]

    def _affordable(
        self, drawn: Mapping[Candidate, int], contested: Mapping[Candidate, float]
    ) -> dict[Candidate, int]:
        """Twice the samples of those, in turn, for which there are calls left; and of those not drawn to the end."""
        probed, wanted = self.scoring.probe.samples, dict[Candidate, int]()
        for one, stake in contested.items():
            more = wanted | {one: min(2 * drawn[one], probed)}
            counts = {**drawn, **more}.values()
            is_left = sum(counts) + max(counts) <= self._allowed
            if drawn[one] < probed and (is_left or math.isinf(stake)):
                wanted = more
        return wanted


def _is_reachable(problem: Problem) -> bool:
    try:
        problem.check_reachable()
    except BudgetError:
        return False
    return True


def _at_stake(problem: Problem, errors: Floats, seed: int) -> Floats:
    """[removable] how much of a plan's damage hangs on each removal, of those that not all plans agree on.

    0, where the plan would do hardly more damage than the best one, whichever scores are true.
    """
    damages = problem.damages
    plan = problem.relaxed(damages)
    differing, regrets = np.zeros(len(damages)), []
    for drawn, best in problem.redrawn(errors, seed, plan):
        ours, least = float(drawn @ plan), float(drawn @ best)
        regrets.append(ours / least - 1 if least > 0 else 0.0)
        differing += np.abs(plan - best)
    if np.mean(regrets) <= SETTLED:
        return np.zeros(len(damages))
    stakes = differing * errors * damages / float(damages @ plan)
    return np.where(stakes >= MATTERS * stakes.max(), stakes, 0)
