"""Selection rules on `zoo:satellite`, at several latency budgets, before any finetuning.

    python -m benchmarks.selection_rules [--samples 16] [--steps 10] [--budgets 0.8 0.65 0.5] [--run runs/rules]

Scores once. Then each rule and budget gives a plan: its predicted and measured latency, and how far the latents move
on seeds that selection has not seen.
"""

import argparse
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

import ldpruner
from benchmarks.records import Record, cell, markdown, read
from ldpruner.evaluation.metrics import latent_shift
from ldpruner.profiling.benchmark import compare
from ldpruner.pruning.fit import MAX_SELECTIONS
from ldpruner.scoring.results import Scores
from ldpruner.selection.plan import Rule

MODEL = "zoo:satellite"
RULES: Mapping[Rule, str] = {
    "knapsack": "knapsack (default)",
    "greedy": "greedy (the paper)",
    "random": "random, three orders",
}
RANDOM_ORDERS = 3
OTHER_SEEDS = (1, 2, 3)


def main() -> None:
    """Measures every cell that is missing."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.8, 0.65, 0.5])
    parser.add_argument("--run", type=Path, default=Path("runs/rules"))
    options = parser.parse_args()
    pipeline = ldpruner.load(MODEL)
    probe = ldpruner.Probe(samples=options.samples, steps=options.steps)
    scores = ldpruner.score_operators(pipeline, None, probe, run=options.run, budgets=None)
    floor = {"model": MODEL, "rule": None, "steps": options.steps}
    cell("selection_rules", floor, lambda: _noise_floor(pipeline, probe))
    for rule in RULES:
        for budget in options.budgets:
            for seed in range(RANDOM_ORDERS if rule == "random" else 1):
                _cell(pipeline, scores, rule, budget, seed)


def _cell(pipeline: DiffusionPipeline, scores: Scores, rule: Rule, budget: float, seed: int) -> Record:
    probe = scores.probe.model_dump(exclude_none=True)
    settings = {"model": MODEL, "rule": rule, "seed": seed, "latency": budget, "probe": probe}
    return cell("selection_rules", settings, lambda: _measured(pipeline, scores, rule, budget, seed))


def _measured(pipeline: DiffusionPipeline, scores: Scores, rule: Rule, budget: float, seed: int) -> dict[str, Any]:
    """The plan that meets the budget as measured, without the margin of `ldpruner run`."""
    asked = budget
    for _ in range(MAX_SELECTIONS):
        plan = _plan(scores, rule, asked, seed)
        pruned = ldpruner.prune(pipeline, plan)
        comparison = compare({"original": pipeline, "pruned": pruned}, scores.probe)
        if comparison.ratio <= budget:
            break
        asked *= budget / comparison.ratio
    probes = [scores.probe.replace(seed=other, samples=32) for other in OTHER_SEEDS]
    shifts = [latent_shift(pipeline, pruned, (probe, probe)) for probe in probes]
    assert plan.predicted is not None
    return {
        "removals": len(plan.removed),
        "predicted": plan.predicted.model_dump(),
        "measured": comparison.model_dump(),
        "latent_shift": [shift if math.isfinite(shift) else None for shift in shifts],
    }


def _plan(scores: Scores, rule: Rule, budget: float, seed: int) -> ldpruner.Plan:
    return ldpruner.select(scores, ldpruner.Budget(latency=budget), rule=rule, seed=seed)


def _noise_floor(pipeline: DiffusionPipeline, probe: ldpruner.Probe) -> dict[str, float]:
    first, second = (probe.replace(seed=seed, samples=32) for seed in OTHER_SEEDS[:2])
    return {"noise_floor": latent_shift(pipeline, pipeline, (first, second))}


def table() -> Iterator[str]:
    """A row for each budget and rule."""
    records = [record for record in read("selection_rules") if record["settings"]["rule"]]
    head = ["latency asked", "rule", "removals", "predicted", "measured", "MACs", "latent shift"]
    rows = []
    for budget in sorted({record["settings"]["latency"] for record in records}, reverse=True):
        for rule, label in RULES.items():
            place = (rule, budget)
            results = [
                one["result"] for one in records if (one["settings"]["rule"], one["settings"]["latency"]) == place
            ]
            rows.append([f"{budget:.0%}", label, *_columns(results)])
    yield from markdown(head, rows)


def _columns(results: Sequence[dict[str, Any]]) -> list[str]:
    shifts = [value for result in results for value in result["latent_shift"]]
    finite = [value for value in shifts if value is not None]
    shift = _range(finite, "{:.2g}") if finite else "not finite"
    return [
        _range([result["removals"] for result in results], "{:.0f}"),
        _range([result["predicted"]["latency"] for result in results], "{:.1%}"),
        _range([result["measured"]["latency_ratio"]["median"] for result in results], "{:.1%}"),
        _range([result["predicted"]["macs"] for result in results], "{:.1%}"),
        shift + (", or not finite" if 0 < len(finite) < len(shifts) else ""),
    ]


def _range(values: Sequence[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


if __name__ == "__main__":
    main()
