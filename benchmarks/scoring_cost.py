"""What scoring takes: racing against exhaustive, for plans of the same quality, and the peers' way.

    python -m benchmarks.scoring_cost --data FOLDER [--models satellite] [--samples 64] [--steps 6] [--seeds 0]

FOLDER holds the data of each model as `FOLDER/NAME/train.zip` and `test.zip`, see the model cards. There is a
cell for each model and seed. Everything runs on one thread. Plans are compared by their quality and not by their
operators, as many operators near zero are interchangeable.
"""

import argparse
import copy
import functools
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

import ldpruner
from benchmarks.models import MODELS, OTHER_SEED, open_model
from benchmarks.records import cell
from ldpruner.errors import BudgetError
from ldpruner.evaluation.metrics import mean
from ldpruner.operators.discovery import Removal
from ldpruner.operators.patching import modified
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.sampling import BATCH_SIZE, sample_latents
from ldpruner.profiling.benchmark import Percentiles
from ldpruner.scoring.adaptive import AdaptiveScorer
from ldpruner.scoring.estimates import shrunk_score
from ldpruner.scoring.importance import cost
from ldpruner.scoring.results import Scores
from ldpruner.scoring.runner import Scoring
from ldpruner.selection.plan import Plan

KEPT = (0.65, 0.5, 0.35)  # of the latency
TRIED = 6  # modifications that are drawn both ways
ROUNDS = 3


def main() -> None:
    """Measures what is missing."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0,))
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for model in options.models:
        opened = open_model(model, options.data / model)
        for seed in options.seeds:
            named = {"model": model, "weights": opened.weights}
            settings = {**named, "seed": seed, "samples": options.samples, "steps": options.steps}
            probe = opened.probe(options.samples, options.steps, seed)
            measure = functools.partial(_measured, opened.pipeline, probe)
            found = cell("scoring_cost", settings, measure)
            for row in found["result"]["adaptive"]:
                print(model, seed, row)  # noqa: T201


def _measured(pipeline: DiffusionPipeline, probe: ldpruner.Probe) -> dict[str, Any]:
    with Scoring(pipeline, None, probe) as scoring:
        scoring.scores()  # costs are measured before the clock starts
        seconds = _seconds(lambda: list(scoring))
        whole, known, errors = scoring.scores(), scoring.store.fact("costs"), _errors(scoring)
    return {
        "modifications": len(whole.scores),
        "denoiser_calls": whole.denoiser_calls,
        "seconds": seconds,
        "errors": errors,
        "adaptive": [_raced(pipeline, whole, seconds, known, kept) for kept in KEPT],
        "peers": _beside_peers(pipeline, whole),
    }


def _errors(scoring: Scoring) -> list[dict[str, float]]:
    """How far scores of few samples are from those of all: deviations of the logarithms of damages."""
    curves = [scoring.drawing.curve(one, scoring.metric) for one in scoring.candidates]
    known = [one for one in curves if one is not None and 0 < one.score < math.inf]
    found = []
    for few in sorted(known[0].scores)[:-1]:
        plain = [cost(one.scores[few] / one.score, scoring.metric) for one in known]
        used = [cost(shrunk_score(one, few, one.samples, scoring.metric) / one.score, scoring.metric) for one in known]
        found.append({"samples": few, "plain": float(np.log(plain).std()), "shrunk": float(np.log(used).std())})
    return found


def _raced(
    pipeline: DiffusionPipeline, whole: Scores, seconds: float, costs: dict[str, Any], kept: float
) -> dict[str, Any]:
    """A race for one budget beside all samples of all, and both plans on samples of other seeds."""
    budget = ldpruner.Budget(latency=kept)
    with Scoring(pipeline, None, whole.probe) as scoring:
        scoring.store.set_fact("costs", costs)  # so that both mean the same by a latency
        taken = _seconds(lambda: list(AdaptiveScorer(scoring, [budget])))
        scores = scoring.scores()
    found = {
        "latency": kept,
        "calls_ratio": scores.denoiser_calls / whole.denoiser_calls,
        "seconds_ratio": taken / seconds,
        "early_stopped": sum(one.stopped for one in scores.scores),
    }
    try:
        plans = [ldpruner.select(one, budget) for one in (whole, scores)]
    except BudgetError as error:
        return {**found, "failure": str(error)}
    objectives = [_objective(plan, whole) for plan in plans]
    away = [_moved(pipeline, plan, whole.probe) for plan in plans]
    return {
        **found,
        "objective_ratio": objectives[1] / objectives[0],
        "exhaustive_plan": away[0],
        "adaptive_plan": away[1],
    }


def _objective(plan: Plan, scores: Scores) -> float:
    """The damage of a plan by scores that need not have made it."""
    known = {(one.operator, one.modification): cost(one.score, scores.metric) for one in scores.scores}
    return sum(known[one.operator, one.modification] for one in plan.removed)


def _moved(pipeline: DiffusionPipeline, plan: Plan, probe: ldpruner.Probe) -> dict[str, Any]:
    """How far a plan moves the latents of other seeds: the mean over samples of their squared distance."""
    other = probe.model_copy(update={"seed": probe.seed + OTHER_SEED})
    pruned = ldpruner.prune(pipeline, plan)
    batches = [range(first, min(first + BATCH_SIZE, other.samples)) for first in range(0, other.samples, BATCH_SIZE)]
    drawn = [[sample_latents(one, other, batch).double() for batch in batches] for one in (pipeline, pruned)]
    distances = (torch.cat(drawn[0]) - torch.cat(drawn[1])).square().flatten(1).mean(1).numpy()
    return {"squared_distance": float(distances.mean()), "interval": mean(distances).interval}


def _beside_peers(pipeline: DiffusionPipeline, scores: Scores) -> dict[str, Any]:
    """Drawing some modifications as peers do, over the time that it takes here; in turn."""
    places = range(0, len(scores.scores), -(-len(scores.scores) // TRIED))
    removals = [scores.scores[place].candidate.removal for place in places]
    ways = (_draw_together, _draw_on_copies)
    pairs = [
        [_seconds(functools.partial(way, pipeline, scores.probe, removal)) for way in ways]
        for _ in range(ROUNDS)
        for removal in removals
    ]
    return {
        "seconds_ratio": Percentiles.of([theirs / ours for ours, theirs in pairs]).model_dump(),
        "samples": BATCH_SIZE,
    }


def _draw_together(pipeline: DiffusionPipeline, probe: ldpruner.Probe, removal: Removal) -> None:
    with modified(find_denoiser(pipeline).module, [removal]):
        sample_latents(pipeline, probe, range(BATCH_SIZE))


def _draw_on_copies(pipeline: DiffusionPipeline, probe: ldpruner.Probe, removal: Removal) -> None:
    """A copy of the whole pipeline is modified, and draws one sample after the other."""
    other = copy.deepcopy(pipeline)
    with modified(find_denoiser(other).module, [removal]):
        for sample in range(BATCH_SIZE):
            sample_latents(other, probe, [sample])


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
