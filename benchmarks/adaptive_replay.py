"""How good adaptive scoring's plans are, replayed on stored latents in many orders of the samples.

    python -m benchmarks.adaptive_replay --data DATA --store FOLDER [--models satellite] [--orders 20] [--finetune]

DATA holds `NAME/train.zip` and `NAME/test.zip` of each model, see the cards in `zoo/`. FOLDER keeps the latents of all
modifications, some hundred megabytes a model. A replay shuffles the samples, varies what each removal saves by 10 %,
and runs the scorer itself on the stored latents. Its plan's cost is compared with the best plan's, both by the scores
of all samples. `--finetune` measures what plans of other costs are worth after finetuning, on `zoo:satellite`.
"""

import argparse
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import ldpruner
from benchmarks.feature_network import measured_quality
from benchmarks.models import MODELS, Model, open_model
from benchmarks.records import cell, markdown, read
from ldpruner.operators.discovery import Operator, Removal
from ldpruner.pipelines.denoiser import Denoiser
from ldpruner.scoring.adaptive import AdaptiveScorer
from ldpruner.scoring.importance import Floats
from ldpruner.scoring.results import Score, Scores
from ldpruner.scoring.runner import ScoringRun
from ldpruner.scoring.sampler import Sampler
from ldpruner.scoring.store import RunStore
from ldpruner.scoring.worker import LocalExecutor, Outcome, Task
from ldpruner.selection.plan import Plan, PlannedRemoval

KEPT = (0.65, 0.5, 0.35)  # of the latency
UNIFORM = (1, 2, 3, 4)  # samples of each modification
DEVIATION = 0.1  # of the logarithm of what a removal saves
BATCH_SIZE = 16
ADAPTIVE = "adaptive"
AT_ONCE = "adaptive, the three budgets at once"
EXCESSES = (0.0, 0.2, 0.44)  # of the cost of the plans that are finetuned
FINETUNED_LATENCY = 0.35
TRIES = 400  # of random plans for an excess
TRAINING = ldpruner.Training(
    max_train_steps=200, train_batch_size=32, lr_warmup_steps=20, early_stopping_patience=None
)
PICTURES, STEPS = 256, 10

Rule: TypeAlias = Callable[[ScoringRun, Sequence[ldpruner.Budget]], Iterable[str]]


def main() -> None:
    """Replays every cell that is missing."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--orders", type=int, default=20)
    parser.add_argument("--first-order", type=int, default=0)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=tuple(RULES))
    parser.add_argument("--finetune", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.models:
        model = open_model(name, options.data / name)
        latents = _stored(model, options)
        if options.finetune and name == "satellite":
            _finetune(model, latents)
        else:
            _replay(model, latents, options)


class Latents(NamedTuple):
    """All modifications of a model on all samples.

    Attributes:
        scores: on all samples.
        rows: [1 + modifications, samples, ...] final latents, the baseline's first.
        calls: of the denoiser, for each sample.
    """

    scores: Scores
    rows: NDArray[np.float32]
    calls: int


class Recorder(LocalExecutor):
    """Keeps the latents that it samples."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self.latents = dict[Removal | None, dict[int, Floats]]()

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Outcome]]:
        for task, outcome in super().run(tasks):
            if outcome.latents is not None:
                self.latents.setdefault(task.removal, {}).update(zip(task.samples, outcome.latents, strict=True))
            yield task, outcome

    def stacked(self, removal: Removal | None) -> Floats | None:
        """[samples, ...] the latents of a modification, or of the baseline; None if it could not be sampled."""
        latents = self.latents.get(removal)
        return np.stack([latents[sample] for sample in sorted(latents)]) if latents else None


def _stored(model: Model, options: argparse.Namespace) -> Latents:
    """The latents of a model, sampled unless they are in the folder."""
    name = f"{model.name}-{options.samples}-{options.steps}-{options.seed}"
    values, arrays = options.store / f"{name}.json", options.store / f"{name}.npy"
    if not values.exists():
        options.store.mkdir(parents=True, exist_ok=True)
        recorder = Recorder(model.pipeline)
        probe = model.probe(options.samples, options.steps, options.seed)
        with ScoringRun(model.pipeline, None, probe, executor=recorder) as scoring:
            for _ in scoring:
                pass
            scores, keys = scoring.scores(), [None, *(candidate.removal for candidate in scoring.candidates)]
        rows = [recorder.stacked(key) for key in keys]
        missing = np.full_like(rows[0], np.nan)
        np.save(arrays, np.array([missing if row is None else row for row in rows], np.float32))
        values.write_text(scores.model_dump_json(), encoding="utf-8")
    scores = Scores.model_validate_json(values.read_text(encoding="utf-8"))
    rows = np.load(arrays)
    return Latents(scores, rows, scores.denoiser_calls // (len(rows) * options.samples))


class Replayed(ScoringRun):
    """A scoring run on stored latents, in an order of the samples, with savings as given."""

    def __init__(self, latents: Latents, scores: Scores, order: NDArray[np.int64]) -> None:
        self.metric, self.probe, self._known = scores.metric, scores.probe, scores
        self.denoiser = Denoiser(scores.component, nn.Linear(1, 1), (), {})
        self.operators = tuple(map(_operator, scores.scores))
        self.store = RunStore(None, {})
        rows: dict[Removal | None, int] = {None: 0}
        rows |= {score.candidate.removal: row for row, score in enumerate(scores.scores, start=1)}
        executor = Replayer(latents, order, rows)
        self.sampler = Sampler(scores.component, scores.probe, self.store, executor, BATCH_SIZE)
        self._saved = {score.candidate: score.savings for score in scores.scores}

    def _costs(self) -> Any:
        return self._known.costs, {}

    def _savings(self, candidate: Any, *_: object) -> Any:
        return self._saved[candidate]


class Replayer:
    """Answers tasks from stored latents."""

    def __init__(self, latents: Latents, order: NDArray[np.int64], rows: Mapping[Removal | None, int]) -> None:
        self.latents, self.order, self.rows = latents, order, rows

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Outcome]]:
        for task in tasks:
            row = self.rows[task.removal]
            failure = self.latents.scores.scores[row - 1].failure if row else None
            latents = self.latents.rows[row][self.order[list(task.samples)]].astype(np.float64)
            yield task, Outcome(failure=failure) if failure else Outcome(self.latents.calls, latents)


def _operator(score: Score) -> Operator:
    """An operator of one modification."""
    shape = {"input_shape": (1,), "output_shape": (1,), "calls": 1, "component": "", "module_type": score.module_type}
    counts = {"parameters": score.candidate.parameters, "macs": score.candidate.macs}
    return Operator.model_validate({"name": score.operator, "candidates": (score.candidate,), **shape, **counts})


def _uniform(number: int) -> Rule:
    def rule(scoring: ScoringRun, _: Sequence[ldpruner.Budget]) -> Iterable[str]:
        return scoring.sampler.sample(dict.fromkeys(scoring.candidates, number))

    return rule


RULES: Mapping[str, Rule] = {
    ADAPTIVE: AdaptiveScorer,
    AT_ONCE: AdaptiveScorer,
    **{f"uniform, {number} of each": _uniform(number) for number in UNIFORM},
}


def _replay(model: Model, latents: Latents, options: argparse.Namespace) -> None:
    budgets = [ldpruner.Budget(latency=kept) for kept in KEPT]
    orders = range(options.first_order, options.first_order + options.orders)
    for rule in options.rules:
        settings = {**_settings(model, latents), "rule": rule, "orders": len(orders), "savings_deviation": DEVIATION}
        settings |= {"first_order": orders.start} if orders.start else {}
        cell("adaptive_replay", settings, partial(_replayed, latents, rule, budgets, orders))


def _settings(model: Model, latents: Latents) -> dict[str, Any]:
    probe = latents.scores.probe
    named = {"model": model.name, "weights": model.weights, "modifications": len(latents.scores.scores)}
    return {**named, "samples": probe.samples, "steps": probe.steps, "seed": probe.seed}


def _replayed(
    latents: Latents, rule: str, budgets: Sequence[ldpruner.Budget], orders: Sequence[int]
) -> dict[str, Any]:
    """For each budget the excess cost and the share of the exhaustive calls, order by order."""
    result: dict[str, dict[str, list[float]]] = {}
    for order in orders:
        for kept, excess, share in _one_order(latents, rule, budgets, order):
            entry = result.setdefault(f"{kept:g}", {"excess": [], "calls_share": []})
            entry["excess"].append(excess)
            entry["calls_share"].append(share)
    return result


def _one_order(
    latents: Latents, rule: str, budgets: Sequence[ldpruner.Budget], seed: int
) -> Iterator[tuple[float, float, float]]:
    order, scores = _varied(latents.scores, seed)
    together = [budgets] if rule == AT_ONCE or rule.startswith("uniform") else [[budget] for budget in budgets]
    for asked in together:
        with Replayed(latents, scores, order) as scoring:
            for _ in RULES[rule](scoring, asked):
                pass
            found = scoring.scores()
        share = found.denoiser_calls / latents.scores.denoiser_calls
        for budget in asked:
            assert budget.latency is not None
            yield budget.latency, _excess(found, scores, budget), share


def _varied(scores: Scores, seed: int) -> tuple[NDArray[np.int64], Scores]:
    """An order of the samples, and the scores with other savings."""
    generator = np.random.default_rng([seed, 7])
    order = generator.permutation(scores.probe.samples)
    factors = np.exp(DEVIATION * generator.normal(size=len(scores.scores)))
    varied = [
        score.replace(savings=score.savings.replace(latency_ms=score.savings.latency_ms * float(factor)))
        for score, factor in zip(scores.scores, factors, strict=True)
    ]
    return order, scores.replace(scores=tuple(varied))


def _excess(estimated: Scores, true: Scores, budget: ldpruner.Budget) -> float:
    """By how much the plan of estimated scores costs more than the best plan; infinity if it cannot be made."""
    costs = true.removal_costs(true.scores)
    chosen, best = (
        known.knapsack(true.scores, budget).solve(known.removal_costs(known.scores)) for known in (estimated, true)
    )
    if chosen is None or best is None:
        return math.inf
    return float(costs[chosen > 0].sum() / costs[best > 0].sum() - 1)


def _finetune(model: Model, latents: Latents) -> None:
    """The quality of plans that cost more than the best one, before and after the same finetuning."""
    for excess, plan in zip(EXCESSES, _plans(latents.scores), strict=True):
        settings = {**_settings(model, latents), "finetuned_excess": excess, "latency": FINETUNED_LATENCY}
        settings |= {"training": TRAINING.model_dump(mode="json"), "pictures": PICTURES, "sampling_steps": STEPS}
        cell("adaptive_replay", settings, partial(_finetuned, model, plan))


def _plans(scores: Scores) -> Iterator[Plan]:
    """For each excess the plan nearest to it, among the best plans for randomly changed costs."""
    budget = ldpruner.Budget(latency=FINETUNED_LATENCY)
    costs, knapsack = scores.removal_costs(scores.scores), scores.knapsack(scores.scores, budget)
    generator = np.random.default_rng(0)
    noises = [np.zeros(len(costs)), *(0.5 * generator.normal(size=len(costs)) for _ in range(TRIES))]
    choices = [chosen for noise in noises if (chosen := knapsack.solve(costs * np.exp(noise))) is not None]
    totals = np.array([costs[chosen > 0].sum() for chosen in choices])
    for excess in EXCESSES:
        chosen = choices[int(np.abs(totals / totals[0] - 1 - excess).argmin())]
        removed = [score for score, taken in zip(scores.scores, chosen, strict=True) if taken]
        yield Plan(
            removed=tuple(PlannedRemoval(removal=score.candidate.removal, score=score.score) for score in removed)
        )


def _finetuned(model: Model, plan: Plan) -> dict[str, Any]:
    pruned = ldpruner.prune(model.pipeline, plan)
    quality = partial(measured_quality, model, pruned, PICTURES, STEPS, 0)
    before = quality()
    ldpruner.finetune(pruned, teacher=model.pipeline, data=model.train, training=TRAINING)
    costs = {"removals": len(plan.removed), "cost": sum(planned.score**2 for planned in plan.removed)}
    return {**costs, "before": before, "after": quality()}


def table() -> Iterator[str]:
    """A row for each model and rule; an excess is median, mean and 90th percentile."""
    head = ["model", "rule", *(f"{kept:.0%} of the latency" for kept in KEPT), "mean of all", "calls"]
    yield from markdown(head, _rows())


def _rows() -> Iterator[list[str]]:
    for record in sorted(read("adaptive_replay"), key=lambda record: record["settings"]["model"]):
        if "rule" not in record["settings"]:
            continue
        entries = [record["result"][f"{kept:g}"] for kept in KEPT]
        excesses = [100 * np.array(entry["excess"]) for entry in entries]
        shares = np.concatenate([entry["calls_share"] for entry in entries])
        yield [
            f"zoo:{record['settings']['model']}",
            record["settings"]["rule"] + (", other orders" if "first_order" in record["settings"] else ""),
            *(f"{np.median(each):.1f} / {each.mean():.1f} / {np.quantile(each, 0.9):.1f} %" for each in excesses),
            f"{np.concatenate(excesses).mean():.1f} %",
            f"{shares.mean():.1%}",
        ]


def finetuned_table() -> Iterator[str]:
    """A row for each plan that was finetuned: its Frechet distance to the test images."""
    yield from markdown(["cost", "removals", "before", "after"], _finetuned_rows())


def _finetuned_rows() -> Iterator[list[str]]:
    for record in read("adaptive_replay"):
        if "finetuned_excess" in record["settings"]:
            result, before, after = record["result"], record["result"]["before"], record["result"]["after"]
            distances = [
                f"{one['frechet_distance']:.2f} ({one['interval'][0]:.2f} to {one['interval'][1]:.2f})"
                for one in (before, after)
            ]
            yield [f"{result['cost']:.3g}", str(result["removals"]), *distances]


if __name__ == "__main__":
    main()
