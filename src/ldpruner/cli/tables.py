"""Answers for people: a line that says the result in words, and tables."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ldpruner.cli.console import Table
from ldpruner.operators.names import ancestors

if TYPE_CHECKING:  # evaluation takes seconds to import, and most commands do not evaluate
    from ldpruner.evaluation.evaluate import Evaluation
    from ldpruner.evaluation.measures import Measure
    from ldpruner.finetuning.settings import History
    from ldpruner.operators.discovery import Operator
    from ldpruner.profiling.benchmark import Comparison
    from ldpruner.scoring.results import Scores
    from ldpruner.selection.plan import Plan
    from ldpruner.workflow import Outcome

MAX_STAGES = 16  # rows of a summary; more, and blocks that differ in their number only share a row
WORDS = {"macs": "MACs"}
MAX_LABEL = 18  # letters of a column's title
STOPPED = {
    "early": "stopped early, as it no longer improved",
    "time": "stopped at the time limit",
    "quality": "stopped as the quality is reached",
}
SAME_SPEED = 0.02  # relative difference of latency that words do not tell
UNITS: Mapping[str, Callable[[float], str]] = {
    "latency_ms": "{:,.1f} ms".format,
    "latency_ratio": "{:.3f}".format,
    "peak_memory_bytes": lambda value: memory(value),
    "parameters": lambda value: f"{value / 1e6:,.2f} M",
    "macs": lambda value: f"{value / 1e9:,.3f} G",
}


def operators_headline(network: str, operators: Sequence[Operator], totals: Mapping[str, int]) -> str:
    """How much of a denoiser can be removed, in one line."""
    modifications = sum(len(operator.candidates) for operator in operators)
    size = f"{totals['parameters'] / 1e6:,.2f} M parameters, {totals['macs'] / 1e9:,.3f} GMACs a call on one sample"
    return f"{network}: {len(operators):,} operators, {modifications:,} modifications; {size}"


def operators_summary(operators: Sequence[Operator], totals: Mapping[str, int]) -> list[Table]:
    """What can be removed, by stage and by type; shares are those of operators that no other of the row holds."""
    stages = _grouped(operators, lambda operator: _stage(operator.name))
    if len(stages) > MAX_STAGES:
        stages = _grouped(operators, lambda operator: operator.name.partition(".")[0])
    types = _grouped(operators, lambda operator: operator.module_type)
    ordered_types = dict(sorted(types.items(), key=lambda item: -len(item[1])))
    return [_summary("stage", stages, totals), _summary("type", ordered_types, totals)]


def operators(operators: Sequence[Operator], totals: Mapping[str, int]) -> Table:
    """Every operator, and the share of the denoiser that it is."""
    rows = [
        (
            operator.name,
            operator.module_type,
            ", ".join(operator.modifications),
            str(operator.calls),
            *(_share(getattr(operator, name), total) for name, total in totals.items()),
        )
        for operator in operators
    ]
    return Table(("operator", "type", "modification", ">calls", ">parameters", ">MACs"), rows)


def ordered(operators: Sequence[Operator], order: str) -> list[Operator]:
    """Operators as they run, by name, or the largest first."""
    if order == "run":
        return list(operators)
    return sorted(operators, key=lambda operator: operator.name if order == "name" else -getattr(operator, order))


def _summary(title: str, groups: Mapping[str, Sequence[Operator]], totals: Mapping[str, int]) -> Table:
    rows = [
        (
            name,
            str(len(members)),
            str(sum(len(operator.candidates) for operator in members)),
            *(
                _share(sum(getattr(operator, quantity) for operator in _outermost(members)), total)
                for quantity, total in totals.items()
            ),
        )
        for name, members in groups.items()
    ]
    return Table((title, ">operators", ">modifications", ">parameters", ">MACs"), rows)


def _grouped(operators: Sequence[Operator], key: Callable[[Operator], str]) -> dict[str, list[Operator]]:
    groups: dict[str, list[Operator]] = defaultdict(list)
    for operator in operators:
        groups[key(operator)].append(operator)
    return groups


def _stage(name: str) -> str:
    """The block that an operator is of: `down_blocks.0` of `down_blocks.0.resnets.1.conv1`."""
    return re.sub(r"^([^.]+(\.\d+)?).*", r"\1", name)


def _outermost(operators: Sequence[Operator]) -> list[Operator]:
    names = {operator.name for operator in operators}
    return [operator for operator in operators if names.isdisjoint(ancestors(operator.name)[:-1])]


def scores(scores: Scores) -> list[str | Table]:
    """How scoring went, and the scores, lowest first: what to remove first is above."""
    sampled = sum(score.samples > 0 for score in scores.scores)
    text = (
        f"{len(scores.scores):,} modifications scored, {sampled:,} of them on samples: "
        f"{scores.probe.samples} samples, {scores.probe.steps} steps, {scores.denoiser_calls:,} denoiser calls"
    )
    if scores.rank_stability is not None:
        text += f"; rank correlation with other seeds {scores.rank_stability:.2f}"
    rows = []
    for score in sorted(scores.scores, key=lambda score: score.score):
        unknown = "not removable" if score.is_known else "saves too little"
        value = f"{score.score:.4g}" if math.isfinite(score.score) else unknown
        shares = [_share(getattr(score.savings, name), getattr(scores.costs, name)) for name in ("parameters", "macs")]
        saved = f"{score.savings.latency_ms:.2f} ms"
        rows.append((score.operator, score.module_type, score.modification, value, *shares, saved))
    columns = ("operator", "type", "modification", ">score ↓", ">parameters", ">MACs", ">latency")
    return [text, Table(columns, rows)]


def plan(plan: Plan) -> list[str | Table]:
    """What a plan is predicted to leave, what it removes, and what goes with it."""
    predicted = plan.predicted.model_dump() if plan.predicted else {}
    left = ", ".join(f"{_percent(value)} of the {WORDS.get(name, name)}" for name, value in predicted.items())
    headline = f"{len(plan.removed)} removals for the budget {plan.budget}; predicted to leave {left}"
    if least := plan.provenance.get("least_cost"):
        ratio = math.sqrt(float(str(plan.provenance["cost"])) / float(str(least)))
        headline += f"; only native ones: the predicted latent shift is {ratio:.2f} times that of the best plan"
    rows = [
        (
            removal.operator,
            removal.modification,
            f"{removal.score:.4g}",
            "" if removal.selection_frequency is None else _percent(removal.selection_frequency),
            ", ".join(removal.removal.cascaded),
        )
        for removal in plan.removed
    ]
    return [headline, Table(("operator", "modification", ">score ↓", ">frequency", "goes with it"), rows)]


def comparison_headline(comparison: Comparison) -> str:
    """How fast and how large a pipeline is, or the second one compared with the first, in one line."""
    first, *others = comparison.pipelines
    if not others:
        return (
            f"{first.pipeline}: {first.latency_ms.median:,.1f} ms a call, {first.parameters / 1e6:,.2f} M parameters"
        )
    second = others[0]
    size = f"{_percent(second.parameters / max(1, first.parameters))} of the parameters"
    return f"{second.pipeline} is {speed(comparison.ratio)} as {first.pipeline}, with {size}"


def comparison(comparison: Comparison) -> Table:
    """Pipelines side by side, and the second relative to the first."""
    costs, latency = comparison.pipelines, comparison.latency_ratio

    def counted(title: str, quantity: str) -> list[str]:
        values = [getattr(cost, quantity) for cost in costs]
        return [title, *map(UNITS[quantity], values), f"{values[-1] / max(1, values[0]):.3f}"]

    rows = [
        counted("parameters ↓", "parameters"),
        counted("MACs of a denoiser call ↓", "macs"),
        ["latency, median ↓", *(UNITS["latency_ms"](cost.latency_ms.median) for cost in costs)],
        ["  10 % to 90 %", *(f"{cost.latency_ms.p10:,.1f} to {cost.latency_ms.p90:,.1f} ms" for cost in costs)],
        counted("peak memory ↓", "peak_memory_bytes"),
    ]
    columns = ["", *(f">{label}" for label in _labels([cost.pipeline for cost in costs]))]
    if latency is None:
        return Table(columns, [row[: len(columns)] for row in rows])
    rows[2].append(f"{latency.median:.3f}")
    rows[3].append(f"{latency.p10:.3f} to {latency.p90:.3f}")
    return Table([*columns, ">ratio"], rows)


def _labels(names: Sequence[str]) -> list[str]:
    """Short titles of pipelines: the last part of a path or a Hub id, or their place."""
    short = [name.rstrip("/").rpartition("/")[2] for name in names]
    is_clear = len(set(short)) == len(short) and all(0 < len(name) <= MAX_LABEL for name in short)
    return short if is_clear else ["first", "second"][: len(names)]


def outcome(outcome: Outcome) -> list[str | Table]:
    """What pruning gave, and the original and the pruned pipeline side by side."""
    first, second = outcome.comparison.pipelines
    size = f"{_percent(second.parameters / max(1, first.parameters))} of the parameters"
    shift = f"latent shift {outcome.latent_shift:.3g}, noise floor {outcome.noise_floor:.3g}"
    headline = f"pruned: {speed(outcome.comparison.ratio)} as the original, {size}; {shift}"
    costs = comparison(outcome.comparison)
    rows = [
        *costs.rows,
        ("latent shift ↓", "", f"{outcome.latent_shift:.3f}", ""),
        ("  noise floor", f"{outcome.noise_floor:.3f}", "", ""),
    ]
    title = f"{len(outcome.plan.removed)} operators removed (budget: {outcome.plan.budget})"
    return [headline, Table(costs.columns, rows, title)]


def history(history: History) -> list[str | Table]:
    """How training went: quality and validation loss against training time; a star marks the weights that are kept."""
    losses = history.validation_losses
    first, best = losses[min(losses)], losses[history.best_step]
    columns = {">step": [str(step) + (" *" if step == history.best_step else "  ") for step in losses]}
    columns[">minutes"] = [f"{60 * history.hours[step]:.1f}" for step in losses]
    columns[">validation loss ↓"] = [f"{loss:.5g}" for loss in losses.values()]
    if history.qualities:
        columns[">quality"] = [f"{history.qualities[step]:.5g}" for step in losses]
    return [
        f"finetuned: the validation loss went from {first:.4g} to {best:.4g} in {history.best_step} steps"
        + (f"; {STOPPED[history.stopped]}" if history.stopped else ""),
        Table(tuple(columns), list(zip(*columns.values(), strict=True))),
    ]


def evaluation_headline(evaluation: Evaluation, stage: str) -> str:
    """Speed, size and quality in one line; quality is measured against what other seeds of the original differ by."""
    measures = {measure.metric: measure for measure in evaluation.metrics}
    parts = []
    if "latency_ratio" in measures:
        parts.append(f"{speed(float(measures['latency_ratio'].pruned or 1))} as the original")
    if "parameters" in measures:
        size = measures["parameters"]
        parts.append(f"{_percent((size.pruned or 0) / max(1, size.original or 1))} of the parameters")
    compared = [measure for measure in evaluation.metrics if measure.within_noise_floor is not None]
    if evaluation.worse:
        parts.append(f"worse by {len(evaluation.worse)} of {len(compared)} metrics: {', '.join(evaluation.worse)}")
    elif compared:
        parts.append(f"quality within the noise of the original ({evaluation.protocol['samples']} samples)")
    return f"{stage}: {', '.join(parts)}"


def evaluation(evaluation: Evaluation, stage: str) -> list[Table]:
    """Each metric of both pipelines, with its interval, its noise floor and a verdict; then by category of prompts."""
    protocol = evaluation.protocol
    title = (
        f"{protocol['samples']} samples, features: {protocol['features']}; "
        "intervals: 95 % confidence, of latencies 10 % to 90 % of the timings"
    )
    rows = [row for measure in evaluation.metrics for row in _measure_rows(measure)]
    tables = [Table(("metric", ">original", f">{stage}", ">interval", ">noise floor", "verdict"), rows, title)]
    if evaluation.by_category:
        tables.append(_category_table(evaluation, stage))
    return tables


def _measure_rows(measure: Measure) -> list[tuple[str, ...]]:
    unit = UNITS.get(measure.metric, "{:.4g}".format)
    figures = ["" if value is None else unit(value) for value in (measure.original, measure.pruned)]
    noise = "" if measure.noise_floor is None else unit(measure.noise_floor)
    row = (_with_arrow(measure), *figures, _interval(measure.interval), noise)
    if measure.difference is None:
        return [(*row, _verdict(measure))]
    difference = f"{measure.difference:+.4g}"
    return [
        (*row, ""),
        ("  difference", "", difference, _interval(measure.difference_interval), "", _verdict(measure)),
    ]


def _category_table(evaluation: Evaluation, stage: str) -> Table:
    """A row for each metric and category; of scores the interval is that of the difference."""
    rows = []
    for place, measure in enumerate(next(iter(evaluation.by_category.values()))):
        for category, measures in evaluation.by_category.items():
            measured = measures[place]
            figures = ["" if value is None else f"{value:.4g}" for value in (measured.original, measured.pruned)]
            interval = measured.interval if measure.difference is None else measured.difference_interval
            rows.append((_with_arrow(measure), category, *figures, _interval(interval), _verdict(measured)))
    return Table(
        ("metric", "category", ">original", f">{stage}", ">interval", "verdict"), rows, "by category of prompts"
    )


def _with_arrow(measure: Measure) -> str:
    return f"{measure.metric} {'↑' if measure.higher_is_better else '↓'}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else " to ".join(f"{bound:.3g}" for bound in interval)


def _verdict(measure: Measure) -> str:
    return {True: "as good", False: "worse", None: ""}[measure.within_noise_floor]


def speed(ratio: float) -> str:
    """A latency relative to another's, in words that `as ...` follows: `2.1 times as fast`."""
    if abs(ratio - 1) <= SAME_SPEED:
        return "as fast"
    return f"{_times(1 / ratio)} times as fast" if ratio < 1 else f"{_times(ratio)} times as slow"


def _times(factor: float) -> str:
    return f"{factor:.2f}".rstrip("0").rstrip(".") if factor < 10 else f"{factor:.0f}"


def memory(size: float) -> str:
    """Bytes with a unit."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / max(1, whole):.1f} %"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"
