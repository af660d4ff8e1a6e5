"""All of it: from a pipeline and a budget to a pruned folder and the numbers beside it."""

import logging
import math
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from ldpruner.bench import Comparison, compare, latent_distance, same_latents
from ldpruner.errors import BudgetError
from ldpruner.probe import Probe
from ldpruner.samples import write_samples
from ldpruner.saving import load, save
from ldpruner.scores import Scores
from ldpruner.selection import Budget, Plan, Rule, select
from ldpruner.surgery import prune
from ldpruner.values import Value

logger = logging.getLogger(__name__)

ATTEMPTS = 4  # selections for one latency budget
MARGIN = 0.97  # of it, so that a budget that is met once is still met when a noisy machine is asked again
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
    """Selects and prunes; a latency budget is then measured, and the selection tightened until it is met.

    Raises:
        BudgetError: the budget cannot be reached.
    """
    plan = select(scores, budget, rule=rule)
    pruned = prune(pipeline, plan)
    wanted = asked = budget.latency or 1.0
    for _ in range(ATTEMPTS if budget.latency else 0):
        pair = {"original": pipeline, "pruned": pruned}
        measured = compare(pair, scores.probe, component=scores.component).ratio
        if measured <= MARGIN * wanted:
            break
        logger.info("measured %.3f of the latency where %.3f was wanted: selecting again", measured, MARGIN * wanted)
        asked *= MARGIN * wanted / measured
        plan = _tightened(scores, budget, asked, measured, rule)
        pruned = prune(pipeline, plan)
    return pruned, plan.model_copy(update={"budget": budget})


def _tightened(scores: Scores, budget: Budget, asked: float, measured: float, rule: Rule) -> Plan:
    """A plan for less than was asked at first."""
    try:
        return select(scores, budget.model_copy(update={"latency": asked}), rule=rule)
    except BudgetError as error:
        raise BudgetError(
            f"budget {budget} cannot be reached: the plan for it measured latency={measured:.3f}, and no more can be "
            f"removed; ask for latency={math.ceil(measured * 1000) / 1000:g} or more"
        ) from error


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
        comparison=compare({"original": pipeline, "pruned": pruned}, probe, component=plan.component),
        score=latent_distance(pipeline, pruned, (fresh[0], fresh[0])),
        noise_floor=latent_distance(pipeline, pipeline, (fresh[0], fresh[1])),
        reload_is_exact=same_latents(pruned, reloaded, probe),
        samples=tuple(write_samples({"before": pipeline, "after": pruned}, fresh[0], SHOWN, folder / "samples")),
    )
