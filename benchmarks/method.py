"""Scores and plans of `zoo:satellite`, which the figures of `docs/method.md` show.

    python -m benchmarks.method [--samples 32] [--steps 10] [--run runs/method]

Scores every modification on all samples. Then it prunes for one latency budget after the other, and samples each
pruned pipeline on seeds that scoring has not seen. `python -m benchmarks.figures` draws the figures.
"""

import argparse
import logging
import math
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

import ldpruner
from benchmarks.records import cell
from ldpruner.evaluation.metrics import latent_shift
from ldpruner.profiling.benchmark import compare
from ldpruner.scoring.results import Score, Scores
from ldpruner.selection.plan import Rule

STUDY = "method"
MODEL = "zoo:satellite"
BUDGETS = (0.9, 0.8, 0.7, 0.65, 0.6, 0.5, 0.4, 0.35, 0.3)
RULES: tuple[Rule, ...] = ("knapsack", "greedy")
OTHER_SEED = 1


def main() -> None:
    """Measures every cell that is missing."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--run", type=Path, default=Path("runs/method"))
    options = parser.parse_args()
    pipeline = ldpruner.load(MODEL)
    probe = ldpruner.Probe(samples=options.samples, steps=options.steps)
    scores = ldpruner.score_operators(pipeline, None, probe, run=options.run, budgets=None)
    settings = {"model": MODEL, "samples": probe.samples, "steps": probe.steps}
    cell(STUDY, {**settings, "of": "scores"}, lambda: _scores(pipeline, scores))
    for rule in RULES:
        for budget in BUDGETS:
            plan = ldpruner.select(scores, ldpruner.Budget(latency=budget), rule=rule)
            place = {**settings, "of": "plan", "rule": rule, "latency": budget}
            cell(STUDY, place, lambda plan=plan: _plan(pipeline, scores, plan))  # type: ignore[misc]


def _scores(pipeline: DiffusionPipeline, scores: Scores) -> dict[str, Any]:
    """Every modification in the order in which its operator runs, and the noise floor of the score."""
    first, second = (scores.probe.replace(seed=seed) for seed in (OTHER_SEED, OTHER_SEED + 1))
    return {
        "noise_floor": latent_shift(pipeline, pipeline, (first, second)),
        "modifications": [_modification(scores, score) for score in scores.scores],
    }


def _modification(scores: Scores, score: Score) -> dict[str, Any]:
    return {
        "removal": score.candidate.removal.model_dump(),
        "module_type": score.module_type,
        "granularity": score.candidate.granularity,
        "score": _rounded(score.score) if math.isfinite(score.score) else None,
        "latency_saved": _rounded(score.savings.fraction(scores.costs, "latency")),
    }


def _rounded(value: float) -> float:
    """Four digits: as many as a figure shows."""
    return float(f"{value:.4g}")


def _plan(pipeline: DiffusionPipeline, scores: Scores, plan: ldpruner.Plan) -> dict[str, Any]:
    """A plan: its predicted and measured latency, and its predicted and measured latent shift."""
    assert plan.predicted is not None
    pruned = ldpruner.prune(pipeline, plan)
    probe = scores.probe.replace(seed=OTHER_SEED)
    ratio = compare({"original": pipeline, "pruned": pruned}, probe).latency_ratio
    assert ratio is not None
    return {
        "removed": [[removal.operator, removal.modification] for removal in plan.removed],
        "predicted_latency": plan.predicted.latency,
        "latency": ratio.model_dump(),
        "predicted_shift": math.sqrt(sum(removal.score**2 for removal in plan.removed)),
        "shift": latent_shift(pipeline, pruned, (probe, probe)),
    }


if __name__ == "__main__":
    main()
