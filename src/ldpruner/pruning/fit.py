"""Pruning to a latency budget that is measured, not only predicted."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from diffusers import DiffusionPipeline

from ldpruner.budget import Budget
from ldpruner.errors import BudgetError
from ldpruner.pipelines.running import force_eager
from ldpruner.profiling.benchmark import compare
from ldpruner.progress import Progress, unreported
from ldpruner.pruning.surgery import prune
from ldpruner.scoring.results import Scores
from ldpruner.selection.plan import Plan, Rule
from ldpruner.selection.select import select

Made = TypeVar("Made")

logger = logging.getLogger(__name__)

MAX_SELECTIONS = 5  # for one latency budget
CLOSE = 0.95  # of the target, near enough
MARGIN = 0.97  # of the budget: what meets it once shall meet it again on a noisy machine
NEAR = 0.8  # of the smallest predicted latency: a smaller target is out of reach


def prune_to_budget(
    pipeline: DiffusionPipeline,
    scores: Scores,
    budget: Budget,
    *,
    rule: Rule = "knapsack",
    native: bool = False,
    run: Path,
    provenance: Mapping[str, object],
    progress: Progress = unreported,
) -> tuple[DiffusionPipeline, Plan]:
    """Selects and prunes. Under a latency budget, measures the latency and selects again until it is just met.

    Latency is that of whole calls. Every selected plan is written into the run folder at once, before it is timed;
    `provenance` is what it says of its origin besides what `select` says.

    Raises:
        BudgetError: the budget cannot be reached.
    """

    def pruned_to(latency: float | None) -> tuple[DiffusionPipeline, Plan]:
        plan = select(scores, budget.replace(latency=latency), rule=rule, native=native)
        plan = plan.replace(budget=budget, provenance={**plan.provenance, **provenance})
        plan.write(run / "plan.json")
        return prune(pipeline, plan, probe=scores.probe), plan

    def measured(pair: tuple[DiffusionPipeline, Plan]) -> float:
        pipelines = {"original": pipeline, "pruned": pair[0]}
        with force_eager():
            return compare(pipelines, scores.probe, component=scores.component, progress=progress).ratio

    pruned, plan = pruned_to(None) if budget.latency is None else fit(pruned_to, measured, budget.latency)
    plan = plan.replace(provenance={**plan.provenance, "measured": True})
    plan.write(run / "plan.json")
    return pruned, plan


def fit(make: Callable[[float], Made], measure: Callable[[Made], float], target: float) -> Made:
    """Makes something whose measured latency is below a target, and not far below.

    A prediction is off by some per cent, and more often too high: its plan would remove more than it needs to. All
    latencies are kept fractions: what `make` is asked for, what `measure` returns, and the target.

    Raises:
        BudgetError: the target cannot be reached.
    """
    if target == 1:
        return make(1.0)
    asked, best, best_latency, problem = target, None, 0.0, ""
    for _ in range(MAX_SELECTIONS):
        try:
            made, predicted = _make_near(make, min(1.0, asked))
        except BudgetError:
            if not problem:  # the first prediction: it says what to ask for
                raise
            break
        latency, is_all = measure(made), predicted > asked
        if latency <= target and (best is None or _is_better(latency, best_latency, MARGIN * target)):
            best, best_latency = made, latency
        problem = f"{'removing all that can be removed' if is_all else 'the last plan'} measured latency={latency:.3f}"
        is_last = is_all if latency > MARGIN * target else predicted >= 1
        if CLOSE * MARGIN * target <= latency <= MARGIN * target or is_last:
            break
        logger.info("latency=%.3f measured, %.3f wanted: selecting again", latency, MARGIN * target)
        asked = predicted * MARGIN * target / latency
    if best is None:
        raise BudgetError(f"budget latency={target:g} cannot be reached: {problem}; ask for more")
    return best


def _make_near(make: Callable[[float], Made], asked: float) -> tuple[Made, float]:
    """Makes something for a predicted latency, or for the smallest possible one if that is near; and returns it."""
    try:
        return make(asked), asked
    except BudgetError as error:
        if error.least is None or asked < NEAR * error.least:
            raise
        return make(error.least), error.least


def _is_better(latency: float, best: float, target: float) -> bool:
    """Whether a latency is the higher one of two below the target, or the lower one of two above it."""
    return best < latency <= target or latency < best > target
