"""What the page says, gathered from a run folder."""

import json
import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldpruner.budget import QUANTITIES
from ldpruner.evaluation.measures import COSTS, Measure
from ldpruner.profiling.benchmark import Comparison
from ldpruner.report.samples import Samples, read_samples
from ldpruner.report.structure import Box, boxes_of, operators_of
from ldpruner.run_folder import RunFolder
from ldpruner.scoring.importance import cost, power
from ldpruner.scoring.results import Score, Scores
from ldpruner.selection.plan import Plan
from ldpruner.selection.select import frontier, predict

MIB, MILLION, GIGA = 2**20, 1e6, 1e9


@dataclass(frozen=True)
class Row:
    """A quantity of both pipelines, as text."""

    name: str
    original: str
    pruned: str
    note: str = ""


@dataclass(frozen=True)
class Contents:
    """What the page says.

    Attributes:
        model, run: the names of the original and of the run folder.
        sentences: the result in words.
        costs, qualities: rows of tables.
        evaluated: which pipeline the qualities are of, `pruned` or `recovered`; None if it was not evaluated.
        samples: of original and pruned pipeline on the same seeds.
        boxes: the denoiser's structure.
        operators: of the boxes.
        data: what the page's script reads.
        commands: that repeat the run.
        protocol: how the qualities were measured, as JSON; None if they were not.
    """

    model: str
    run: str
    sentences: tuple[str, ...]
    costs: tuple[Row, ...]
    qualities: tuple[Row, ...]
    evaluated: str | None
    samples: Samples
    boxes: list[Box]
    operators: list[Score]
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
    comparison, evaluated = folder.comparison(), folder.evaluation()
    operators = operators_of(scores)
    evaluation = evaluated[1] if evaluated is not None else None
    return Contents(
        model=model,
        run=str(run),
        sentences=tuple(_sentences(scores, plan, comparison, evaluation.worse if evaluation else None)),
        costs=tuple(_costs(comparison)) if comparison is not None else (),
        qualities=tuple(map(_quality, [measure for measure in evaluation.metrics if measure.metric not in COSTS]))
        if evaluation
        else (),
        evaluated=evaluated[0] if evaluated is not None else None,
        samples=read_samples(folder.samples),
        boxes=boxes_of(operators),
        operators=operators,
        data=_data(scores, plan, operators),
        commands=tuple(_commands(model, str(run), plan)),
        protocol=json.dumps(evaluation.protocol, indent=2) if evaluation else None,
    )


def _sentences(
    scores: Scores, plan: Plan, comparison: Comparison | None, worse: tuple[str, ...] | None
) -> Iterator[str]:
    count = len({score.operator for score in scores.scores})
    yield f"{len(plan.removed)} of {count} operators of the {scores.component} are removed."
    ratio = comparison.latency_ratio if comparison is not None else None
    if comparison is not None and ratio is not None:
        original, pruned = comparison.pipelines
        yield (
            f"A call takes {percent(ratio.median)} of the original's time, as measured ({percent(ratio.p10)} to "
            f"{percent(ratio.p90)} in eight of ten rounds). {percent(pruned.parameters / original.parameters)} of the "
            f"denoiser's parameters and {percent(pruned.peak_memory_bytes / original.peak_memory_bytes)} of the peak "
            "memory are left."
        )
    elif plan.predicted is not None:
        yield (
            f"A call is predicted to take {percent(plan.predicted.latency)} of the original's time, with "
            f"{percent(plan.predicted.parameters)} of the denoiser's parameters. Neither was measured."
        )
    if worse is None:
        yield "The quality was not measured yet; the command ldpruner evaluate measures it."
    elif worse:
        yield f"The samples are measurably worse in {len(worse)} of the metrics below."
    else:
        yield "No metric tells the samples from those of the original with other seeds."


def percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"


def _costs(comparison: Comparison) -> Iterator[Row]:
    original, pruned = comparison.pipelines
    before, after = (
        f"{time.median:,.1f} ({time.p10:,.1f} to {time.p90:,.1f})" for time in (original.latency_ms, pruned.latency_ms)
    )
    yield Row("latency of one call, ms", before, after)
    for name, title, unit in (
        ("parameters", "parameters of the denoiser, M", MILLION),
        ("macs", "GMACs of one denoiser call", GIGA),
        ("peak_memory_bytes", "peak memory, MiB", MIB),
    ):
        first, second = getattr(original, name), getattr(pruned, name)
        yield Row(title, f"{first / unit:,.4g}", f"{second / unit:,.4g}", f"{percent(second / first)} left")


def _quality(measure: Measure) -> Row:
    interval = f" ({measure.interval[0]:.4g} to {measure.interval[1]:.4g})" if measure.interval else ""
    floor = f"noise floor {measure.noise_floor:.4g}; " if measure.noise_floor is not None else ""
    verdict = {True: "not worse", False: "worse", None: ""}[measure.within_noise_floor]
    return Row(
        measure.metric.replace("_", " "),
        "" if measure.original is None else f"{measure.original:.4g}",
        "" if measure.pruned is None else f"{measure.pruned:.4g}{interval}",
        floor + verdict,
    )


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
    return {"budget": kept, "removed": removed, "left": predict(scores, chosen).model_dump(), "shift": shift}


def _commands(model: str, run: str, plan: Plan) -> Iterator[str]:
    budget = f" --budget {shlex.quote(','.join(str(plan.budget).split()))}" if plan.budget is not None else ""
    yield f"ldpruner run {shlex.quote(model)} --run {shlex.quote(run)}{budget}"
    yield f"ldpruner evaluate --run {shlex.quote(run)}"
    yield f"ldpruner report --run {shlex.quote(run)}"
