"""Which score finds the operators that matter least: the paper's study of metric design, on the models of the zoo.

    python -m benchmarks.metric_design --data FOLDER [--models emoji] [--seeds 3] [--pictures 128] [--rules knapsack]

FOLDER holds the data of each model as `FOLDER/NAME/train.zip` and `test.zip`, see the model cards. Each score chooses
what to remove, at several cuts of the latency; the damage is the rise of the judge's Frechet distance to test images,
without any finetuning. One JSON for each plan and seed, as a plan that several scores choose is measured once, and one
for each seed with all that were chosen. Scoring resumes from its run folders. Writes the tables of
docs/metric-design.md.
"""

import argparse
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import scipy.stats

import ldpruner
from benchmarks.records import ROOT, cell, write_between
from benchmarks.selection_rules import random_plan
from benchmarks.subjects import SUBJECTS, Subject, open_subject
from ldpruner.scoring.importance import METRICS
from ldpruner.scoring.results import Scores
from ldpruner.scoring.runner import Scoring
from ldpruner.selection.plan import RULES, Plan, Rule

CUTS = (0.1, 0.2, 0.35, 0.5)  # of the latency
STEPS = 6
DOCUMENT = ROOT / "docs" / "metric-design.md"
RANDOM = "random"
ORIGINAL = ("original", "", 0.0)
# what a plan was chosen by: rule, score, cut
PlannedRemoval: TypeAlias = tuple[str, str, float]


def main() -> None:
    """Measures every cell that is missing, then writes the tables."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=SUBJECTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=8, help="latents to score with")
    parser.add_argument("--pictures", type=int, default=128, help="pictures to measure a plan with")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=["knapsack"])
    parser.add_argument("--runs", type=Path, default=Path("runs/metric-design"))
    options = parser.parse_args()
    rises = {name: _rises(open_subject(name, options.data / name), options) for name in options.models}
    write_between("tables", "\n".join(_tables(rises, options.rules)), DOCUMENT)


def _rises(subject: Subject, options: argparse.Namespace) -> dict[PlannedRemoval, list[float]]:
    """For each choice the rise of the distance over the original's, seed by seed; and the original's own."""
    rises: dict[PlannedRemoval, list[float]] = {}
    for seed in range(options.seeds):
        found = _choices(subject, seed, options)
        original = found.pop(ORIGINAL)
        rises.setdefault(ORIGINAL, []).append(original)
        for choice, distance in found.items():
            rises.setdefault(choice, []).append(distance - original)
    return rises


def _choices(subject: Subject, seed: int, options: argparse.Namespace) -> dict[PlannedRemoval, float]:
    """For each choice on one seed the distance of its plan: from these cells alone the tables are written."""
    asked = {"samples": options.samples, "pictures": options.pictures, "rules": options.rules}
    settings = {"model": subject.name, "weights": subject.weights, "seed": seed, "steps": STEPS, **asked}

    def measure() -> dict[str, Any]:
        # a removal shall save the same on all seeds
        costs = _scores(subject, 0, options)[METRICS[0]]
        plans = dict(_plans(_scores(subject, seed, options), costs, options.rules, seed))
        found = [(ORIGINAL, _distance(subject, None, seed, options.pictures))]
        found += [(choice, _distance(subject, plan, seed, options.pictures)) for choice, plan in plans.items()]
        return {"choices": [[*choice, distance] for choice, distance in found]}

    known = cell(f"metric_design/{subject.name}/seed-{seed}", settings, measure)["result"]["choices"]
    return {(rule, metric, cut): distance for rule, metric, cut, distance in known}


def _scores(subject: Subject, seed: int, options: argparse.Namespace) -> dict[str, Scores]:
    """All alternative scores, read off the same latents."""
    probe = subject.probe(options.samples, STEPS, seed)
    with Scoring(subject.pipeline, None, probe, run=options.runs / f"{subject.name}-{seed}") as scoring:
        for _ in scoring:
            pass
        return {metric: scoring.scores(metric) for metric in METRICS}


def _plans(
    found: Mapping[str, Scores], costs: Scores, rules: Sequence[Rule], seed: int
) -> Iterator[tuple[PlannedRemoval, Plan]]:
    for cut in CUTS:
        for rule in rules:
            for metric, scores in found.items():
                plan = ldpruner.select(_with_costs(scores, costs), ldpruner.Budget(latency=1 - cut), rule=rule)
                yield (rule, metric, cut), plan
        yield (RANDOM, RANDOM, cut), random_plan(costs, 1 - cut, np.random.default_rng(seed))


def _with_costs(scores: Scores, costs: Scores) -> Scores:
    pairs = zip(scores.scores, costs.scores, strict=True)
    priced = tuple(score.model_copy(update={"savings": other.savings}) for score, other in pairs)
    return scores.model_copy(update={"costs": costs.costs, "scores": priced})


def _distance(subject: Subject, plan: Plan | None, seed: int, pictures: int) -> float:
    """The Frechet distance to test images of a pruned pipeline, or of the original."""
    removed = [one.removal.model_dump(mode="json") for one in plan.removed] if plan else []
    named = {"model": subject.name, "weights": subject.weights}
    settings = {**named, "seed": seed, "pictures": pictures, "steps": STEPS, "removed": removed}
    digest = hashlib.blake2b(json.dumps(removed).encode(), digest_size=6).hexdigest()

    def measure() -> dict[str, Any]:
        pruned = ldpruner.prune(subject.pipeline, plan) if plan else subject.pipeline
        predicted = plan.predicted.model_dump() if plan and plan.predicted else None
        return {"frechet_distance": subject.distance(pruned, pictures, STEPS, seed), "predicted": predicted}

    found = cell(f"metric_design/{subject.name}/{digest}-{seed}", settings, measure)
    return float(found["result"]["frechet_distance"])


def _tables(rises: Mapping[str, Mapping[PlannedRemoval, Sequence[float]]], rules: Sequence[Rule]) -> Iterator[str]:
    for name, table in rises.items():
        yield f"### zoo:{name}\n\nThe original's own distance is {_interval(table[ORIGINAL], '{:.2f}')}.\n"
        yield "| rule | score | " + " | ".join(f"-{cut:.0%}" for cut in CUTS) + " |"
        yield "|---|---|" + "---|" * len(CUTS)
        for rule, metric in [(rule, metric) for rule in rules for metric in METRICS] + [(RANDOM, "")]:
            cells = [_interval(table[rule, metric or RANDOM, cut]) for cut in CUTS]
            yield f"| {rule} | {metric} | " + " | ".join(cells) + " |"
        yield ""
    yield "### Ranks\n"
    yield "| score | " + " | ".join(rules) + " |"
    yield "|---|" + "---|" * len(rules)
    ranks = {rule: _ranks(rises, rule) for rule in rules}
    for place, metric in enumerate(METRICS):
        yield f"| {metric} | " + " | ".join(_interval(ranks[rule][place], "{:.2f}") for rule in rules) + " |"
    yield ""


def _ranks(rises: Mapping[str, Mapping[PlannedRemoval, Sequence[float]]], rule: str) -> np.ndarray:
    """The place of each score among all, 1 for least damage, for each model, cut and seed: [scores, cases]."""
    cases = [
        [table[rule, metric, cut][seed] for metric in METRICS]
        for table in rises.values()
        for cut in CUTS
        for seed in range(len(table[rule, METRICS[0], cut]))
    ]
    return np.asarray(scipy.stats.rankdata(np.array(cases), axis=1)).T


def _interval(values: Sequence[float] | np.ndarray, form: str = "{:+.2f}") -> str:
    """The mean and half of its 95 % interval (Student's t)."""
    mean, count = float(np.mean(values)), len(values)
    if not np.isfinite(mean):
        return "not finite"
    half = scipy.stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count) if count > 1 else float("nan")
    return f"{form.format(mean)} ± {half:.2f}"


if __name__ == "__main__":
    main()
