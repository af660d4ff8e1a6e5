"""Racing: a look at all modifications first, then samples of those only that could still change the selection."""

import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from diffusers import DiffusionPipeline

from ldpruner.budget import Budget
from ldpruner.errors import BudgetError
from ldpruner.operators.discovery import Candidate, Operator
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.sampling import BATCH_SIZE
from ldpruner.scoring.importance import Floats, Metric, power
from ldpruner.scoring.knapsack import Problem
from ldpruner.scoring.looks import COST
from ldpruner.scoring.results import Forecast, Scores
from ldpruner.scoring.runner import Scoring
from ldpruner.scoring.worker import Executor, Task

logger = logging.getLogger(__name__)

USUAL = (Budget(latency=0.65), Budget(latency=0.5), Budget(latency=0.35))  # raced for where none is named
SETTLED = 0.0005  # of a plan's damage: what another choice may be expected to spare
SURE = 4  # times in turn that nothing is at stake, before a plan is taken for settled
MOST = 2  # samples of each modification, on average, that may be drawn for a budget; and one for all budgets
MATTERS = 0.1  # of what the most contested removal may spare: where less is at stake, none is drawn again
LITTLE = 0.001  # of what a budget asks to save: removals that save less are not drawn
FEW = 8  # modifications that are drawn in any case: they tell how large scores are
FAR = 2.0  # times as far as all of a plan takes the latents, a removal is not drawn on


def score_operators(  # noqa: PLR0913  (each is a choice of its own)
    pipeline: DiffusionPipeline,
    operators: Sequence[Operator] | None = None,
    probe: Probe | None = None,
    *,
    component: str | None = None,
    run: Path | str | None = None,
    metric: Metric = "mean_std",
    batch_size: int = BATCH_SIZE,
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
        RunStoreError: the run folder is another model's or probe's.
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
        for _ in scoring if budgets is None else AdaptiveScorer(scoring, budgets):
            pass
        return scoring.scores()


class AdaptiveScorer:
    """A scoring run that ends when the selection is settled or the probe is used up.

    An iterable whose length grows while it goes on: draws made, and draws that are known to follow.

    Args:
        scoring: what draws.
        budgets: for which to settle the selection; those that cannot be reached are left out.
    """

    def __init__(self, scoring: Scoring, budgets: Sequence[Budget] = USUAL) -> None:
        self.scoring, self.budgets = scoring, budgets or USUAL
        self._known = scoring.scores(first={})  # what removals save, before anything is drawn
        self._worth = self._worthwhile()
        self._draws = len(scoring.drawing.looks(self._worth))

    def __len__(self) -> int:
        return self._draws

    def __iter__(self) -> Iterator[str]:
        """Looks and draws; yields the operator's name after each draw."""
        drawing = self.scoring.drawing
        yield from drawing.look(self._worth)
        drawn = dict.fromkeys(self._worth, 0)
        for wanted in self._first():
            yield from self._draw(drawn, wanted)
            drawn |= wanted
        for stage in itertools.count():
            # a run that is resumed has drawn more already, and shall come to the same choice
            scores, standard_errors = self.scoring.scores(first=drawn), self.scoring.standard_errors(drawn)
            wanted = self._affordable(drawn, self._contested(scores, standard_errors, stage))
            wanted = wanted or self._affordable(drawn, self._unknown(scores))
            if not wanted:
                return
            logger.info("of %d modifications %d are drawn, or drawn again", len(drawn), len(wanted))
            yield from self._draw(drawn, wanted)
            drawn |= wanted

    def _draw(self, drawn: Mapping[Candidate, int], wanted: Mapping[Candidate, int]) -> Iterator[str]:
        """Draws; with a limit, what was not drawn before."""
        drawing = self.scoring.drawing
        new = {one: number for one, number in wanted.items() if not drawn[one]}
        again = {one: number for one, number in wanted.items() if drawn[one]}
        self._draws += len(drawing.draws(new)) + len(drawing.draws(again))
        yield from drawing.draw(new, self._limit(drawn) if new else math.inf)
        yield from drawing.draw(again)

    def _first(self) -> tuple[dict[Candidate, int], dict[Candidate, int]]:
        """What is drawn in any case: a few that were seen to do little, then those that do much, or cannot be told."""
        effects = {one: self.scoring.drawing.effect(one) for one in self._worth}
        seen = sorted((effect, place) for place, effect in enumerate(effects.values()) if effect is not None)
        few = [self._worth[place] for _, place in seen[:: max(1, len(seen) // FEW)]]
        half = -(-len(few) // 2)
        others = few[half:] + [one for one, effect in effects.items() if effect is None]
        return dict.fromkeys(few[:half], 1), dict.fromkeys(others, 1)

    def forecast(self, *, exhaustive: bool = False) -> Forecast:
        """What the run will take, or that of all modifications on all samples, from one draw and the costs."""
        scoring, costs = self.scoring, self._known.costs
        task = Task(scoring.denoiser.component, scoring.probe, None, (0,), 1)
        ((_, drawn),) = scoring.drawing.executor.run([task])
        everything = scoring.probe.samples * (1 + len(self._known.scores))
        least = everything if exhaustive else self._looked
        most = everything if exhaustive else self._allowed
        return Forecast(
            operators=len(scoring.operators),
            modifications=len(self._known.scores),
            denoiser_calls=(least * drawn.calls, most * drawn.calls),
            seconds=(least * costs.latency_ms / 1000, most * costs.latency_ms / 1000),
        )

    @property
    def _allowed(self) -> int:
        """Samples that may be drawn in all, untouched ones too; a plan of which some left its path may take more."""
        each = min(self.scoring.probe.samples, 1 + MOST * len(self.budgets))
        return each * (1 + len(self._known.scores))

    @property
    def _looked(self) -> int:
        """What looks take, in samples drawn."""
        return math.ceil(COST * len(self._worth)) + len(self.scoring.drawing.looks(self._worth))

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

    def _limit(self, drawn: Mapping[Candidate, int]) -> float:
        """How far latents may go, as a mean square: further, one removal is worse than all of a plan that is known.

        Infinity, where nothing is drawn yet, or no budget can be met.
        """
        distances = self._squared_distances(drawn)
        if not distances:
            return math.inf
        totals = []
        for problem in self._problems(self.scoring.scores(first=drawn)):
            shares = zip(problem.relaxed(problem.removal_costs), problem.removable, strict=True)
            totals.append(sum(share * distances.get(one.candidate, math.inf) for share, one in shares if share))
        return FAR * max(totals, default=math.inf)

    def _squared_distances(self, drawn: Mapping[Candidate, int]) -> dict[Candidate, float]:
        """How far removals move latents, as a mean square: as drawn, or else as seen. Empty where none is drawn."""
        drawing, metric = self.scoring.drawing, self.scoring.metric
        curves = {one: drawing.curve(one, metric) for one, number in drawn.items() if number}
        found = {one: float(curve.first(drawn[one]).distances.mean()) for one, curve in curves.items() if curve}
        effects = {one: effect for one in drawn if (effect := drawing.effect(one))}
        ratios = [distance / effects[one] for one, distance in found.items() if one in effects and distance < math.inf]
        return {one: float(np.median(ratios)) * effect for one, effect in effects.items()} | found if ratios else {}

    def _contested(
        self, scores: Scores, standard_errors: Mapping[Candidate, float], stage: int
    ) -> dict[Candidate, float]:
        """What is at stake in those that a plan depends on and that are not sure enough; the most first."""
        priorities = dict[Candidate, float]()
        for problem in self._problems(scores):
            known = [one.candidate for one in problem.removable]
            errors = power(scores.metric) * np.array([standard_errors[one] for one in known])
            for one, priority in zip(known, _priorities(problem, errors, stage), strict=True):
                priorities[one] = max(priorities.get(one, 0.0), priority)
        contested = sorted(priorities.items(), key=lambda one: -one[1])
        return {one: priority for one, priority in contested if priority > 0}

    def _unknown(self, scores: Scores) -> dict[Candidate, float]:
        """Those of a plan that were stopped on the way; everything is at stake, as their scores are least ones."""
        plans = [itertools.compress(one.removable, one.solve(one.removal_costs)) for one in self._problems(scores)]
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
        for one, priority in contested.items():
            more = wanted | {one: min(max(1, 2 * drawn[one]), probed)}
            counts = {**drawn, **more}.values()
            is_left = self._looked + sum(counts) + max(counts) <= self._allowed
            if drawn[one] < probed and (is_left or math.isinf(priority)):
                wanted = more
        return wanted


def _is_reachable(problem: Problem) -> bool:
    try:
        problem.check_reachable()
    except BudgetError:
        return False
    return True


def _priorities(problem: Problem, errors: Floats, seed: int) -> Floats:
    """[removable] how much of a plan's damage hangs on each removal, of those that not all plans agree on.

    0, where the plan would do hardly more damage than the best one, whichever scores are true.
    """
    removal_costs = problem.removal_costs
    plan = problem.relaxed(removal_costs)
    for again in range(SURE):
        differing, regrets = np.zeros(len(removal_costs)), []
        for drawn, best in problem.redrawn(errors, SURE * seed + again, plan):
            ours, least = float(drawn @ plan), float(drawn @ best)
            regrets.append(ours / least - 1 if least > 0 else 0.0)
            differing += np.abs(plan - best)
        if np.mean(regrets) > SETTLED:
            priorities = differing * errors * removal_costs / float(removal_costs @ plan)
            return np.where(priorities >= MATTERS * priorities.max(), priorities, 0)
    return np.zeros(len(removal_costs))
