"""What the page of a run says, gathered from its folder."""

import json
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldpruner.budget import QUANTITIES
from ldpruner.evaluation.evaluate import Evaluation
from ldpruner.evaluation.measures import COSTS, Measure
from ldpruner.finetuning.settings import History
from ldpruner.profiling.benchmark import Comparison as Timing
from ldpruner.report.charts import Chart, frontier_chart, importance_chart, training_chart
from ldpruner.report.comparison import Comparison, compare_runs
from ldpruner.report.samples import Samples, read_samples
from ldpruner.report.structure import Box, boxes_of, operators_of
from ldpruner.report.words import Row, cost_measures_of, cost_rows, minutes, percent, quality_rows, short_name
from ldpruner.run_folder import RATIO, RunFolder
from ldpruner.scoring.importance import cost, power
from ldpruner.scoring.results import Score, Scores
from ldpruner.selection.plan import Plan
from ldpruner.selection.select import frontier, predict


@dataclass(frozen=True)
class Tile:
    """A number of the headline: what it is, its value, and where it comes from."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Contents:
    """What the page says.

    Attributes:
        model, run: the names of the original and of the run folder.
        sentences: the result in words.
        tiles: the result in numbers.
        costs, qualities: rows of tables.
        evaluated: which pipeline the qualities are of, `pruned` or `recovered`; None if it was not evaluated.
        samples: of the pipelines on the same seeds.
        boxes: the denoiser's structure.
        operators: of the boxes.
        charts: by name.
        alternatives: the run's pipeline beside what else is faster; None if nothing else was measured.
        budgets, training: rows of tables.
        nearest: the place of the plan of another budget that is nearest to this run's.
        data: what the page's script reads.
        commands: that repeat the run.
        protocol: how the qualities were measured, as JSON; None if they were not.
    """

    model: str
    run: str
    sentences: tuple[str, ...]
    tiles: tuple[Tile, ...]
    costs: tuple[Row, ...]
    qualities: tuple[Row, ...]
    evaluated: str | None
    samples: Samples
    boxes: list[Box]
    operators: list[Score]
    charts: dict[str, Chart]
    alternatives: Comparison | None
    budgets: tuple[tuple[str, ...], ...]
    training: tuple[tuple[str, ...], ...]
    nearest: int
    data: dict[str, Any]
    commands: tuple[str, ...]
    protocol: str | None


def gather(run: Path | str) -> Contents:
    """Reads a run folder that has scores and a plan.

    Raises:
        RunStoreError: it has no scores, or a file of it cannot be read.
        PlanMismatch: it has no plan.
    """
    folder = RunFolder(run)
    scores, plan, model = folder.scores(), folder.plan(), folder.model()
    comparison, history = folder.comparison(), folder.history()
    evaluated, evaluation = folder.evaluation() or (None, None)
    operators, costs = operators_of(scores), cost_measures_of(comparison, evaluation)
    data = _data(scores, plan, operators)
    return Contents(
        model=short_name(model),
        run=str(run),
        sentences=tuple(_sentences(scores, plan, costs, _place(comparison, evaluation), evaluation)),
        tiles=tuple(_tiles(plan, costs, evaluation)),
        costs=tuple(cost_rows(costs)),
        qualities=tuple(quality_rows(evaluation)) if evaluation is not None else (),
        evaluated=evaluated,
        samples=read_samples(folder.samples) if folder.has_samples else Samples(),
        boxes=boxes_of(operators),
        operators=operators,
        charts={chart.name: chart for chart in _charts(scores, operators, data, history) if chart is not None},
        alternatives=compare_runs([run], with_samples=False) if folder.alternatives() else None,
        budgets=tuple(map(_budget_row, data["plans"])),
        training=tuple(_training_rows(history)) if history is not None else (),
        nearest=_nearest(data),
        data=data,
        commands=tuple(_commands(model, str(run), plan, is_recovered=history is not None)),
        protocol=json.dumps(evaluation.protocol, indent=2) if evaluation is not None else None,
    )


def _place(comparison: Timing | None, evaluation: Evaluation | None) -> str:
    """Where the latency was measured."""
    if evaluation is not None and any(measure.metric == RATIO for measure in evaluation.metrics):
        return " in ".join(str(evaluation.protocol.get(name)) for name in ("device", "precision"))
    return str(comparison.machine) if comparison is not None and comparison.machine is not None else "this machine"


def _sentences(
    scores: Scores, plan: Plan, costs: Sequence[Measure], place: str, evaluation: Evaluation | None
) -> Iterator[str]:
    count = len({score.operator for score in scores.scores})
    yield f"{len(plan.removed)} of {count} operators of the {scores.component} are removed."
    ratio = next((measure for measure in costs if measure.metric == RATIO), None)
    if ratio is not None and ratio.pruned is not None and ratio.interval is not None:
        low, high = map(percent, ratio.interval)
        yield (
            f"A call takes {percent(ratio.pruned)} of the original's time ({low} to {high} in eight of ten rounds), "
            f"as measured on {place}."
        )
    elif plan.predicted is not None:
        left = percent(plan.predicted.latency)
        yield f"A call is predicted to take {left} of the original's time. It was not timed."
    if plan.budget is not None:
        yield f"The budget was {plan.budget}."
    if evaluation is None:
        yield "The quality was not measured yet; the command ldpruner evaluate measures it."
        return
    samples = evaluation.protocol.get("samples")
    compared = sum(measure.within_noise_floor is not None for measure in evaluation.metrics)
    if evaluation.worse:
        yield f"On {samples} samples, {len(evaluation.worse)} of {compared} metrics find the quality worse."
    else:
        yield f"On {samples} samples, no metric finds the quality worse, beyond the noise floor."


def _tiles(plan: Plan, costs: Sequence[Measure], evaluation: Evaluation | None) -> Iterator[Tile]:
    """What is left of the original, and one measure of quality."""
    for row in cost_rows(costs):
        yield Tile(f"of the {row.name}", row.share, f"{row.pruned}; original {row.original}")
    if not costs and plan.predicted is not None:
        for name, value in plan.predicted.model_dump().items():
            yield Tile(f"of the {name}", percent(value), "predicted")
    if evaluation is not None:
        yield from _quality_tile(evaluation)


def _quality_tile(evaluation: Evaluation) -> Iterator[Tile]:
    measures = [measure for measure in evaluation.metrics if measure.metric not in COSTS]
    if not measures:
        return
    measure = next((measure for measure in measures if measure.metric == "frechet_distance"), measures[0])
    row = next(row for row in quality_rows(evaluation) if row.metric == measure.metric)
    beside = f"original {row.original}" if row.original else f"noise floor {row.floor}"
    yield Tile(row.name, row.pruned, "; ".join(filter(None, [row.interval, beside])))


def _charts(
    scores: Scores, operators: list[Score], data: dict[str, Any], history: History | None
) -> Iterator[Chart | None]:
    plans = [(plan["left"]["latency"], plan["shift"]) for plan in data["plans"]]
    yield importance_chart(operators, scores)
    yield frontier_chart(plans, (data["plan"]["left"]["latency"], data["plan"]["shift"]))
    if history is not None:
        yield training_chart(history)


def _nearest(data: dict[str, Any]) -> int:
    latency = data["plan"]["left"]["latency"]
    distances = [abs(plan["left"]["latency"] - latency) for plan in data["plans"]]
    return distances.index(min(distances)) if distances else 0


def _budget_row(plan: dict[str, Any]) -> tuple[str, ...]:
    left = [percent(plan["left"][name]) for name in ("latency", "parameters", "macs", "memory")]
    return percent(plan["budget"]), str(len(plan["removed"])), *left, f"{plan['shift']:.3g}"


def _training_rows(history: History) -> Iterator[tuple[str, ...]]:
    for step, loss in history.validation_losses.items():
        quality = f"{history.qualities[step]:.4g}" if step in history.qualities else ""
        kept = "kept" if step == history.best_step else ""
        yield str(step), minutes(history.hours.get(step)), f"{loss:.4g}", quality, kept


def _data(scores: Scores, plan: Plan, operators: list[Score]) -> dict[str, Any]:
    """The operators of the map, the plan, and the plans of other budgets."""
    places = {score.operator: place for place, score in enumerate(operators)}
    by_removal = {(score.operator, score.modification): score for score in scores.scores}
    removed = [by_removal.get((planned.operator, planned.modification)) for planned in plan.removed]
    chosen = [score for score in removed if score is not None]
    return {
        "operators": [_operator(score, scores) for score in operators],
        "plan": _plan(scores, chosen, places, None),
        "plans": [_plan(scores, cheapest, places, kept) for kept, cheapest in frontier(scores)],
    }


def _operator(score: Score, scores: Scores) -> dict[str, Any]:
    return {
        "name": score.operator,
        "type": score.module_type,
        "modification": score.modification,
        "score": score.score if math.isfinite(score.score) else None,
        "interval": score.interval,
        "samples": score.samples,
        "failure": score.failure,
        "saves": {name: score.savings.fraction(scores.costs, name) for name in QUANTITIES},
    }


def _plan(scores: Scores, chosen: list[Score], places: dict[str, int], kept: float | None) -> dict[str, Any]:
    shift = sum(cost(score.score, scores.metric) for score in chosen) ** (1 / power(scores.metric))
    removed = [places[score.operator] for score in chosen]
    gone = [name for score in chosen for name in (score.operator, *score.candidate.removal.cascaded)]
    left = predict(scores, chosen).model_dump()
    return {"budget": kept, "removed": removed, "gone": gone, "left": left, "shift": shift}


def _commands(model: str, run: str, plan: Plan, *, is_recovered: bool) -> Iterator[str]:
    budget = f" --budget {shlex.quote(','.join(str(plan.budget).split()))}" if plan.budget is not None else ""
    yield f"ldpruner run {shlex.quote(model)} --run {shlex.quote(run)}{budget}"
    if is_recovered:
        yield f"ldpruner finetune --run {shlex.quote(run)}"
    yield f"ldpruner evaluate --run {shlex.quote(run)}"
    yield f"ldpruner report --run {shlex.quote(run)}"
