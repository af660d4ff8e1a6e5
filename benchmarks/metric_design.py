"""Which score finds the operators that matter least: the paper's study of metric design, on the models of the zoo.

    python -m benchmarks.metric_design --data FOLDER [--models emoji] [--seeds 3] [--pictures 128] [--rules knapsack]

FOLDER holds the data of each model as `FOLDER/NAME/train.zip` and `test.zip`, see the model cards. Each score chooses
what to remove, at several cuts of the latency; the damage is the rise of the Frechet distance to test images,
without any finetuning. There is a cell for each plan and seed, as a plan that several scores choose is measured once,
and one for each seed with all choices.
"""

import argparse
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import scipy.stats

import ldpruner
from benchmarks.adaptive_replay import Recorder
from benchmarks.models import MEASURED, MODELS, Model, open_model
from benchmarks.records import cell, markdown, read
from ldpruner.evaluation.metrics import frechet_distance
from ldpruner.operators.discovery import Candidate
from ldpruner.scoring.importance import Floats
from ldpruner.scoring.results import Scores
from ldpruner.scoring.runner import ScoringRun
from ldpruner.selection.plan import RULES, Plan, Rule

CUTS = (0.1, 0.2, 0.35, 0.5)  # of the latency
STEPS = 6
RANDOM = "random"
ORIGINAL = ("original", "", 0.0)
# rule, metric and cut by which a plan was chosen
PlanKey: TypeAlias = tuple[str, str, float]


def main() -> None:
    """Measures every cell that is missing."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=8, help="latents to score with")
    parser.add_argument("--pictures", type=int, default=128, help="pictures to measure a plan with")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=["knapsack"])
    options = parser.parse_args()
    for name in options.models:
        model = open_model(name, options.data / name)
        for seed in range(options.seeds):
            _measure_choices(model, seed, options)


def _measure_choices(model: Model, seed: int, options: argparse.Namespace) -> None:
    """For each choice on one seed the distance of its plan; the tables are made from these cells alone."""
    asked = {"samples": options.samples, "pictures": options.pictures, "rules": options.rules}
    settings = {"model": model.name, "weights": model.weights, "seed": seed, "steps": STEPS, **asked}

    def measure() -> dict[str, Any]:
        # a removal saves the same on all seeds
        costs = _scores(model, 0, options)["mean_std"]
        plans = dict(_plans(_scores(model, seed, options), costs, options.rules, seed))
        distances = [(ORIGINAL, _distance(model, None, seed, options.pictures))]
        distances += [(choice, _distance(model, plan, seed, options.pictures)) for choice, plan in plans.items()]
        return {"choices": [[*choice, distance] for choice, distance in distances]}

    cell("metric_design", settings, measure)


def _scores(model: Model, seed: int, options: argparse.Namespace) -> dict[str, Scores]:
    """The scores of all metrics, from the same latents."""
    recorder = Recorder(model.pipeline)
    with ScoringRun(model.pipeline, None, model.probe(options.samples, STEPS, seed), executor=recorder) as scoring:
        for _ in scoring:
            pass
        scores = scoring.scores()
    baseline = recorder.stacked(None)
    assert baseline is not None
    latents = {score.candidate: recorder.stacked(score.candidate.removal) for score in scores.scores}
    return {name: _rescored(scores, name, baseline, latents) for name in METRICS}


def _rescored(scores: Scores, name: str, baseline: Floats, latents: Mapping[Candidate, Floats | None]) -> Scores:
    """The same scores by another metric."""
    values = [_score(name, baseline, latents[score.candidate]) for score in scores.scores]
    rescored = [score.replace(score=value) for score, value in zip(scores.scores, values, strict=True)]
    # what a plan's cost is depends only on whether a metric is quadratic
    return scores.replace(scores=tuple(rescored), metric="mse" if name in QUADRATIC else "mean_std")


def _score(name: str, baseline: Floats, latents: Floats | None) -> float:
    if latents is None or not np.isfinite(latents).all():
        return math.inf
    return float(METRICS[name](baseline, latents))


def _mean(z: Floats, other: Floats) -> float:
    return float(np.linalg.norm(z.mean(0) - other.mean(0)))


def _std(z: Floats, other: Floats) -> float:
    return float(np.linalg.norm(z.std(0) - other.std(0)))


def _variance(z: Floats, other: Floats) -> float:
    return float(np.linalg.norm(z.var(0) - other.var(0)))


def _cosine(z: Floats, other: Floats) -> float:
    """The mean over samples of 1 - the cosine of each latent and its baseline."""
    pairs = [(one.ravel(), two.ravel()) for one, two in zip(z, other, strict=True)]
    return float(np.mean([1 - one @ two / (np.linalg.norm(one) * np.linalg.norm(two)) for one, two in pairs]))


def _frechet(z: Floats, other: Floats) -> float:
    """The Frechet distance of latents pooled over space."""
    first, second = (latents.reshape(*latents.shape[:2], -1).mean(2) for latents in (z, other))
    return frechet_distance(first, second).value


METRICS: Mapping[str, Callable[[Floats, Floats], float]] = {
    "mean_std": lambda z, other: _mean(z, other) + _std(z, other),
    "mean_variance": lambda z, other: _mean(z, other) + _variance(z, other),
    "mean": _mean,
    "std": _std,
    "mse": lambda z, other: float(np.square(z - other).mean()),
    "cosine": _cosine,
    "frechet": _frechet,
}
QUADRATIC = ("mse", "cosine", "frechet")  # in how far the latents moved; the others are linear


def _plans(
    scores_by_metric: Mapping[str, Scores], costs: Scores, rules: Sequence[Rule], seed: int
) -> Iterator[tuple[PlanKey, Plan]]:
    for cut in CUTS:
        for rule in rules:
            for metric, scores in scores_by_metric.items():
                plan = ldpruner.select(_with_costs(scores, costs), ldpruner.Budget(latency=1 - cut), rule=rule)
                yield (rule, metric, cut), plan
        yield (RANDOM, RANDOM, cut), ldpruner.select(costs, ldpruner.Budget(latency=1 - cut), rule="random", seed=seed)


def _with_costs(scores: Scores, costs: Scores) -> Scores:
    pairs = zip(scores.scores, costs.scores, strict=True)
    priced = tuple(score.replace(savings=other.savings) for score, other in pairs)
    return scores.replace(costs=costs.costs, scores=priced)


def _distance(model: Model, plan: Plan | None, seed: int, pictures: int) -> float:
    """The Frechet distance to test images of a pruned pipeline, or of the original."""
    removed = [planned.removal.model_dump(mode="json") for planned in plan.removed] if plan else []
    named = {"model": model.name, "weights": model.weights}
    settings = {**named, "seed": seed, "pictures": pictures, "steps": STEPS, "removed": removed}

    def measure() -> dict[str, Any]:
        pruned = ldpruner.prune(model.pipeline, plan) if plan else model.pipeline
        predicted = plan.predicted.model_dump() if plan and plan.predicted else None
        return {"frechet_distance": model.distance(pruned, pictures, STEPS, seed), "predicted": predicted}

    return float(cell("metric_design", settings, measure)["result"]["frechet_distance"])


def tables() -> Iterator[str]:
    """The rise of the distance over the original's for each model, and the ranks of the metrics."""
    rises = {model: _rises(model) for model in MEASURED}
    choices = [choice for table in rises.values() for choice in table if choice[0] not in (RANDOM, ORIGINAL[0])]
    rules = list(dict.fromkeys(rule for rule, _, _ in choices))
    metrics = list(dict.fromkeys(metric for _, metric, _ in choices))
    cuts = sorted({cut for _, _, cut in choices})
    for model, table in rises.items():
        yield f"### zoo:{model}\n\nThe original's own distance is {_interval(table[ORIGINAL], '{:.2f}')}.\n"
        rows = [(rule, metric, metric) for rule in rules for metric in metrics] + [(RANDOM, "", RANDOM)]
        head = ["rule", "metric", *(f"-{cut:.0%}" for cut in cuts)]
        yield from markdown(
            head,
            ([rule, label, *(_interval(table[rule, metric, cut]) for cut in cuts)] for rule, label, metric in rows),
        )
        yield ""
    yield "### Ranks\n"
    ranks = {rule: _ranks(rises, [[(rule, metric, cut) for metric in metrics] for cut in cuts]) for rule in rules}
    rows_of_ranks = (
        [name, *(_interval(ranks[rule][place], "{:.2f}") for rule in rules)] for place, name in enumerate(metrics)
    )
    yield from markdown(["metric", *rules], rows_of_ranks)


def _rises(model: str) -> dict[PlanKey, list[float]]:
    """The original's own distance, and each choice's rise over it, seed by seed."""
    rises: dict[PlanKey, list[float]] = {}
    for record in read("metric_design"):
        if record["settings"]["model"] != model or "choices" not in record["result"]:
            continue
        distances = {(rule, metric, cut): value for rule, metric, cut, value in record["result"]["choices"]}
        original = distances.pop(ORIGINAL)
        rises.setdefault(ORIGINAL, []).append(original)
        for choice, distance in distances.items():
            rises.setdefault(choice, []).append(distance - original)
    return rises


def _ranks(rises: Mapping[str, Mapping[PlanKey, Sequence[float]]], cuts: Sequence[Sequence[PlanKey]]) -> np.ndarray:
    """The rank of each metric, 1 for the least rise, for each model, cut and seed: [metrics, cases]."""
    cases = [
        [table[choice][seed] for choice in choices]
        for table in rises.values()
        for choices in cuts
        for seed in range(len(table[choices[0]]))
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
