"""How rules of selection differ: `zoo:satellite` at several latency budgets, before any finetuning.

    python -m benchmarks.selection_rules [--samples 16] [--steps 10] [--budgets 0.8 0.65 0.5] [--run runs/rules]

Scores once, then for each rule and budget: what the plan predicts, what is measured in turn with the original, and how
far the latents have moved on seeds that no selection has seen. Writes its table into the README.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np

import ldpruner
from benchmarks.records import cell, write_between
from ldpruner.evaluation.metrics import latent_score
from ldpruner.profiling.benchmark import compare
from ldpruner.scoring.knapsack import predict
from ldpruner.scoring.results import Score, Scores
from ldpruner.selection.plan import PlannedRemoval
from ldpruner.workflow import ATTEMPTS

MODEL = "zoo:satellite"
RULES = {"knapsack": "knapsack (default)", "greedy": "lowest first (the paper)", "random": "random, three draws"}
OTHER_SEEDS = (1, 2, 3)


def main() -> None:
    """Measures every cell that is missing, then writes the table."""
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
    rows = [_row(pipeline, scores, rule, budget) for budget in options.budgets for rule in RULES]
    header = "| latency asked | rule | removals | predicted | measured | MACs left | moved by |\n" + "|---" * 7 + "|\n"
    floor = cell("noise_floor", {"model": MODEL, "steps": options.steps}, lambda: _noise_floor(pipeline, probe))
    note = (
        f"\n\n`zoo:satellite`, {options.steps} steps, before any finetuning; scores from {options.samples} samples, "
        "distances from 32 on each of three other seeds. Two draws of the original itself are "
        f"{floor['result']['distance']:.1f} apart.\n"
    )
    write_between("rules table", header + "\n".join(rows) + note)


def _row(pipeline: Any, scores: Scores, rule: str, budget: float) -> str:
    cells = [_measured(pipeline, scores, rule, budget, draw) for draw in range(3 if rule == "random" else 1)]
    results = [one["result"] for one in cells]
    removal_costs = [value for one in results for value in one["damage"]]
    columns = [
        _range([one["removals"] for one in results], "{:.0f}"),
        _range([one["predicted"]["latency"] for one in results], "{:.1%}"),
        _range([one["measured"]["latency_ratio"]["median"] for one in results], "{:.1%}"),
        _range([one["predicted"]["macs"] for one in results], "{:.1%}"),
        _range(removal_costs, "{:.2g}"),
    ]
    return f"| {budget:.0%} | {RULES[rule]} | " + " | ".join(columns) + " |"


def _range(values: list[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def _measured(pipeline: Any, scores: Scores, rule: str, budget: float, draw: int) -> dict[str, Any]:
    probe = scores.probe.model_dump(exclude_none=True)
    settings = {"model": MODEL, "rule": rule, "draw": draw, "latency": budget, "probe": probe}
    return cell(f"rule_{rule}_{draw}_{budget:g}", settings, lambda: _cell(pipeline, scores, rule, budget, draw))


def _cell(pipeline: Any, scores: Scores, rule: str, budget: float, draw: int) -> dict[str, Any]:
    """The plan that meets the budget when it is measured, without the margin that `ldpruner run` adds."""
    asked = budget
    for _ in range(ATTEMPTS):
        plan = _plan(scores, rule, asked, draw)
        pruned = ldpruner.prune(pipeline, plan)
        compared = compare({"original": pipeline, "pruned": pruned}, scores.probe)
        assert compared.latency_ratio is not None
        if compared.latency_ratio.median <= budget:
            break
        asked *= budget / compared.latency_ratio.median
    fresh = [scores.probe.model_copy(update={"seed": seed, "samples": 32}) for seed in OTHER_SEEDS]
    assert plan.predicted is not None
    return {
        "removals": len(plan.removed),
        "predicted": plan.predicted.model_dump(),
        "measured": compared.model_dump(),
        "damage": [latent_score(pipeline, pruned, (probe, probe)) for probe in fresh],
    }


def _plan(scores: Scores, rule: str, budget: float, draw: int) -> ldpruner.Plan:
    if rule == "random":
        return random_plan(scores, budget, np.random.default_rng(draw))
    return ldpruner.select(scores, ldpruner.Budget(latency=budget), rule="greedy" if rule == "greedy" else "knapsack")


def random_plan(scores: Scores, budget: float, generator: np.random.Generator) -> ldpruner.Plan:
    """Removals in random order until the budget is met; none that overlaps an earlier one."""
    chosen: list[Score] = []
    for index in generator.permutation(len(scores.scores)):
        score = scores.scores[index]
        taken = {leaf for one in chosen for leaf in one.candidate.leaves}
        if np.isfinite(score.score) and not taken & set(score.candidate.leaves):
            chosen.append(score)
        if predict(scores, chosen).latency <= budget:
            break
    removed = tuple(PlannedRemoval(**one.candidate.removal.model_dump(), score=one.score) for one in chosen)
    return ldpruner.Plan(removed=removed, component=scores.component, predicted=predict(scores, chosen))


def _noise_floor(pipeline: Any, probe: ldpruner.Probe) -> dict[str, float]:
    first, second = (probe.model_copy(update={"seed": seed, "samples": 32}) for seed in OTHER_SEEDS[:2])
    return {"distance": latent_score(pipeline, pipeline, (first, second))}


if __name__ == "__main__":
    main()
