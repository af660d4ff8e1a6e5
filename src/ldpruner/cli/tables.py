"""What the command line prints, as tables."""

import math
from collections.abc import Mapping, Sequence

from rich.table import Table

from ldpruner.evaluation.evaluate import Evaluation
from ldpruner.finetuning import History
from ldpruner.operators.discovery import Operator
from ldpruner.profiling.benchmark import Comparison, Percentiles, PipelineCost
from ldpruner.scoring.results import Scores
from ldpruner.selection.plan import Plan
from ldpruner.workflow import Outcome


def operators(found: Sequence[Operator], totals: Mapping[str, int]) -> Table:
    """What can be removed, and the share of the denoiser that it is."""
    title = f"{totals['parameters'] / 1e6:,.1f} M parameters, {totals['macs'] / 1e9:,.3f} GMACs a call on one sample"
    table = _table(title, "operator", "kind", "modification", ">calls", ">parameters", ">MACs")
    for one in found:
        shares = [f"{getattr(one, name) / max(1, total):.1%}" for name, total in totals.items()]
        table.add_row(one.name, one.module_type, ", ".join(one.modifications), str(one.calls), *shares)
    return table


def scores(known: Scores) -> Table:
    """The scores, lowest first."""
    title = f"{known.probe.samples} samples, {known.probe.steps} steps, {known.denoiser_calls:,} denoiser calls"
    if known.rank_stability is not None:
        title += f", rank correlation with other seeds {known.rank_stability:.2f}"
    table = _table(title, "operator", "kind", "modification", ">score", ">parameters", ">MACs", ">ms")
    for one in sorted(known.scores, key=lambda one: one.score):
        unknown = "not removable" if one.is_known else "saves too little"
        value = f"{one.score:.4g}" if math.isfinite(one.score) else unknown
        shares = [
            f"{getattr(one.savings, name) / max(1, getattr(known.costs, name)):.1%}" for name in ("parameters", "macs")
        ]
        table.add_row(one.operator, one.kind, one.modification, value, *shares, f"{one.savings.latency_ms:.2f}")
    return table


def plan(chosen: Plan) -> Table:
    """What is removed, and what that leaves."""
    left = chosen.predicted.model_dump() if chosen.predicted else {}
    title = f"{len(chosen.removed)} removals, predicted to leave " + ", ".join(
        f"{value:.1%} of the {name}" for name, value in left.items()
    )
    table = _table(title, "operator", "modification", ">score", ">firm", "goes with it")
    for one in chosen.removed:
        selection_frequency = "" if one.selection_frequency is None else f"{one.selection_frequency:.0%}"
        table.add_row(one.operator, one.modification, f"{one.score:.4g}", selection_frequency, ", ".join(one.cascaded))
    return table


def comparison(measured: Comparison) -> Table:
    """Pipelines side by side."""
    table = _table(None, "", *(f">{one.pipeline}" for one in measured.pipelines), *_kept_column(measured))
    for row in _rows(measured):
        table.add_row(*row)
    return table


def outcome(result: Outcome) -> Table:
    """The original and the pruned pipeline side by side."""
    table = comparison(result.comparison)
    table.title = f"{len(result.plan.removed)} operators removed (budget: {result.plan.budget})"
    table.add_row("score (other seeds)", "0", f"{result.score:.3f}", "")
    table.add_row("  two draws of the original", f"{result.noise_floor:.3f}", "", "")
    return table


def history(known: History) -> Table:
    """How the held-out loss went; a star marks the weights that are kept."""
    table = _table(None, ">step", ">held-out loss")
    for step, loss in known.validation_losses.items():
        table.add_row(str(step), f"{loss:.5g}" + (" *" if step == known.best_step else "  "))
    return table


def evaluation(found: Evaluation) -> Table:
    """Each metric of both pipelines, with its interval and its noise floor."""
    protocol = found.protocol
    title = f"{protocol['samples']} samples, features: {protocol['features']}"
    table = _table(title, "metric", ">original", ">pruned", ">interval", ">noise floor")
    for one in found.metrics:
        interval = "" if one.interval is None else " to ".join(_figure(bound) for bound in one.interval)
        table.add_row(one.metric, _figure(one.original), _figure(one.pruned), interval, _figure(one.noise_floor))
    return table


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _kept_column(measured: Comparison) -> list[str]:
    return [">kept"] if len(measured.pipelines) == 2 else []


def _rows(measured: Comparison) -> list[list[str]]:
    cells = [
        ("parameters", [f"{one.parameters / 1e6:,.2f} M" for one in measured.pipelines]),
        ("MACs of a denoiser call", [f"{one.macs / 1e9:,.4f} G" for one in measured.pipelines]),
        ("latency, median", [f"{one.latency_ms.median:,.1f} ms" for one in measured.pipelines]),
        ("  10 % to 90 %", [_range(one.latency_ms, " ms") for one in measured.pipelines]),
        ("peak memory", [f"{one.peak_memory_bytes / 2**20:,.1f} MiB" for one in measured.pipelines]),
    ]
    kept = _kept(measured)
    return [[name, *values, *kept.get(name, [""] * bool(kept))] for name, values in cells]


def _kept(measured: Comparison) -> dict[str, list[str]]:
    if measured.latency_ratio is None:
        return {}
    first, second = measured.pipelines
    return {
        "parameters": [f"{second.parameters / first.parameters:.1%}"],
        "MACs of a denoiser call": [f"{second.macs / first.macs:.1%}"],
        "latency, median": [f"{measured.latency_ratio.median:.1%}"],
        "  10 % to 90 %": [_range(measured.latency_ratio, "")],
        "peak memory": [f"{_memory_ratio(first, second):.1%}"],
    }


def _memory_ratio(first: PipelineCost, second: PipelineCost) -> float:
    return second.peak_memory_bytes / first.peak_memory_bytes


def _range(spread: Percentiles, unit: str) -> str:
    if not unit:
        return f"{spread.p10:.1%} to {spread.p90:.1%}"
    return f"{spread.p10:,.1f} to {spread.p90:,.1f}{unit}"


def _table(title: str | None, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="", header_style="bold")
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return table
