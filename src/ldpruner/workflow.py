"""All of it: from a pipeline and a budget to a pruned folder and the numbers beside it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import DiffusionPipeline

from ldpruner.budget import Budget
from ldpruner.errors import BudgetError
from ldpruner.evaluation.metrics import latent_shift, same_latents
from ldpruner.evaluation.samples import write_samples
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import force_eager
from ldpruner.profiling.benchmark import Comparison, compare
from ldpruner.pruning.serialization import load, save
from ldpruner.pruning.surgery import prune
from ldpruner.scoring.results import Scores
from ldpruner.selection.plan import Plan, Rule
from ldpruner.selection.select import select
from ldpruner.values import Value

Made = TypeVar("Made")

logger = logging.getLogger(__name__)

ATTEMPTS = 5  # selections for one latency budget
CLOSE = 0.95  # of it, near enough
MARGIN = 0.97  # of it, so that a budget that is met once is still met when a noisy machine is asked again
NEAR = 0.8  # of the least that a plan is predicted to leave: it may as well leave so much
SHOWN = 8  # samples of before and after in the run folder


class Outcome(Value):
    """What a run ended with.

    Attributes:
        plan: what was removed.
        comparison: the original and the pruned pipeline, timed in turn.
        score: how far the pruned latents are from the original's, on seeds that no selection has seen.
        noise_floor: the same distance between two draws of the original itself.
        reload_is_exact: whether the saved folder, opened again, gave the same latents to the bit.
        samples: pictures and sounds of both on the same seeds; on a sheet, those before are above.
    """

    plan: Plan
    comparison: Comparison
    score: float
    noise_floor: float
    reload_is_exact: bool
    samples: tuple[Path, ...] = ()


def prune_to_budget(
    pipeline: DiffusionPipeline, scores: Scores, budget: Budget, *, rule: Rule = "knapsack"
) -> tuple[DiffusionPipeline, Plan]:
    """Selects and prunes; a latency budget is then measured, and the selection moved until it is just met.

    Args:
        pipeline: the original.
        scores: its own.
        budget: what may be left of it; latency is that of whole calls, timed in turn.
        rule: how to select.

    Raises:
        BudgetError: the budget cannot be reached.
    """

    def pruned_to(latency: float | None) -> tuple[DiffusionPipeline, Plan]:
        plan = select(scores, budget.model_copy(update={"latency": latency}), rule=rule)
        return prune(pipeline, plan), plan

    def measured(found: tuple[DiffusionPipeline, Plan]) -> float:
        return _compared(pipeline, found[0], scores.probe, scores.component).ratio

    pruned, plan = pruned_to(None) if budget.latency is None else fit(pruned_to, measured, budget.latency)
    return pruned, plan.model_copy(update={"budget": budget, "provenance": {**plan.provenance, "measured": True}})


def fit(made: Callable[[float], Made], measured: Callable[[Made], float], wanted: float) -> Made:
    """What takes a little less latency than wanted, and not far less.

    A prediction is off by some per cent, and more often too high: a plan for it would remove more than it need.

    Args:
        made: makes something for a predicted latency, the kept fraction; BudgetError where it cannot.
        measured: its latency as it is.
        wanted: the kept fraction.

    Raises:
        BudgetError: it cannot be reached.
    """
    if wanted == 1:
        return made(1.0)
    asked, best, best_latency, problem = wanted, None, 0.0, ""
    for _ in range(ATTEMPTS):
        try:
            found, given = _made_for(made, min(1.0, asked))
        except BudgetError:
            if not problem:  # the first prediction: it says what to ask for
                raise
            break
        latency, is_all = measured(found), given > asked
        if latency <= wanted and (best is None or _better(latency, best_latency, MARGIN * wanted)):
            best, best_latency = found, latency
        problem = f"{'removing all that can be removed' if is_all else 'the last plan'} measured latency={latency:.3f}"
        nothing_more = is_all if latency > MARGIN * wanted else given >= 1
        if CLOSE * MARGIN * wanted <= latency <= MARGIN * wanted or nothing_more:
            break
        logger.info("measured %.3f of the latency where %.3f was wanted: selecting again", latency, MARGIN * wanted)
        asked = given * MARGIN * wanted / latency
    if best is None:
        raise BudgetError(f"budget latency={wanted:g} cannot be reached: {problem}; ask for more")
    return best


def _made_for(made: Callable[[float], Made], asked: float) -> tuple[Made, float]:
    """What is made for a predicted latency, and that; for the least that there is, if what is asked is near it."""
    try:
        return made(asked), asked
    except BudgetError as error:
        if error.least is None or asked < NEAR * error.least:
            raise
        return made(error.least), error.least


def _better(latency: float, best: float, wanted: float) -> bool:
    """Whether it is the slower of two that are fast enough, or the faster of two that are not."""
    return best < latency <= wanted or latency < best > wanted


def finish(pipeline: DiffusionPipeline, pruned: DiffusionPipeline, plan: Plan, probe: Probe, folder: Path) -> Outcome:
    """Saves a pruned pipeline into a run folder, opens it again, and sets it beside its original."""
    plan.write(folder / "plan.json")
    save(pruned, folder / "pruned")
    precision = None if pipeline.dtype == torch.float32 else pipeline.dtype
    reloaded = load(folder / "pruned", torch_dtype=precision).to(pipeline.device)
    probe = probe.completed(pipeline)
    fresh = [probe.model_copy(update={"seed": probe.seed + shift}) for shift in (1, 2)]
    return Outcome(
        plan=plan,
        comparison=_compared(pipeline, pruned, probe, plan.component),
        score=latent_shift(pipeline, pruned, (fresh[0], fresh[0])),
        noise_floor=latent_shift(pipeline, pipeline, (fresh[0], fresh[1])),
        reload_is_exact=same_latents(pruned, reloaded, probe),
        samples=tuple(write_samples({"before": pipeline, "after": pruned}, fresh[0], SHOWN, folder / "samples")),
    )


def _compared(
    original: DiffusionPipeline, pruned: DiffusionPipeline, probe: Probe, component: str | None
) -> Comparison:
    """Both as they are written: what is pruned has not been compiled yet."""
    with force_eager():
        return compare({"original": original, "pruned": pruned}, probe, component=component)
