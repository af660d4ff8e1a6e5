"""What the page of several pipelines says: pruned ones, and what else makes an original faster, side by side."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldpruner.errors import RunStoreError
from ldpruner.evaluation.measures import COSTS, Measure, cost_measures
from ldpruner.report.charts import Chart, Point, quality_chart
from ldpruner.report.samples import MAX_BYTES, Sample, Samples, read_samples
from ldpruner.report.words import cost_row, name_of, quality_row, short_name
from ldpruner.run_folder import RunFolder

# of a protocol: metrics that differ in one of these do not compare
COMPARABLE = ("probe", "seeds", "samples", "features", "clip", "dino", "lpips", "reference")
CHART_METRICS = ("frechet_distance", "latent_distance", "latent_shift")  # the first that all entries have


@dataclass(frozen=True)
class Entry:
    """A pipeline beside its original.

    Attributes:
        name: what it is.
        measures: of both.
        protocol: how the qualities were measured; None if they were not.
    """

    name: str
    measures: tuple[Measure, ...]
    protocol: dict[str, Any] | None

    def measure(self, metric: str) -> Measure | None:
        """The measure of a metric; None if there is none."""
        return next((measure for measure in self.measures if measure.metric == metric), None)

    def value(self, metric: str) -> float | None:
        """The value of a metric; None if it was not measured."""
        measure = self.measure(metric)
        return None if measure is None or measure.pruned is None else float(measure.pruned)


@dataclass(frozen=True)
class Removed:
    """What a run removes: how many operators, and which of them no other run removes."""

    run: str
    count: int
    alone: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """What the page says.

    Attributes:
        models: the originals.
        names: of the pipelines.
        costs, qualities: rows of tables; a cell for each pipeline.
        warnings: why some of it does not compare.
        chart: quality beside latency; None if no metric is of all pipelines.
        samples: of the original and the runs that have the same seeds.
        removed: by each run.
    """

    models: tuple[str, ...]
    names: tuple[str, ...]
    costs: tuple[tuple[str, ...], ...]
    qualities: tuple[tuple[str, ...], ...]
    warnings: tuple[str, ...]
    chart: Chart | None
    samples: tuple[Sample, ...]
    removed: tuple[Removed, ...]


def compare_runs(runs: Sequence[Path | str], *, with_samples: bool = True) -> Comparison:
    """Reads run folders that hold a plan, and what was measured of them.

    Raises:
        RunStoreError: nothing was measured in one of them, or a file of it cannot be read.
        PlanMismatch: one of them has no plan.
    """
    folders = {str(run): RunFolder(run) for run in runs}
    entries = [entry for name, folder in folders.items() for entry in entries_of(name, folder)]
    models = tuple(dict.fromkeys(short_name(folder.model()) for folder in folders.values()))
    samples, without = _samples(folders) if with_samples else ((), [])
    return Comparison(
        models=models,
        names=tuple(entry.name for entry in entries),
        costs=tuple(_rows(entries, COSTS)),
        qualities=tuple(_rows(entries, _quality_names(entries))),
        warnings=tuple(_warnings(models, entries, without)),
        chart=chart_of(entries),
        samples=samples,
        removed=tuple(_removed(folders)),
    )


def chart_of(entries: Sequence[Entry]) -> Chart | None:
    """Quality beside latency."""
    for metric in CHART_METRICS:
        values = [(entry.name, entry.value("latency_ratio"), entry.value(metric)) for entry in entries]
        points = [Point(x, y, name) for name, x, y in values if x is not None and y is not None]
        if len(points) == len(entries):
            return quality_chart(name_of(metric), points)
    return None


def entries_of(run: str, folder: RunFolder) -> Iterator[Entry]:
    """The pipeline of a run, and what else makes its original faster.

    Raises:
        RunStoreError: the pipeline was not measured.
    """
    comparison = folder.comparison()
    stage, evaluation = folder.evaluation() or (None, None)
    if evaluation is not None:
        yield Entry(f"{run}, {stage}", evaluation.metrics, evaluation.protocol)
    elif comparison is not None:
        yield Entry(f"{run}, pruned", tuple(cost_measures(comparison)), None)
    else:
        raise RunStoreError(f"nothing was measured in {run}; do it with 'ldpruner evaluate --run {run}'")
    for alternative in folder.alternatives():
        yield Entry(f"original, {alternative.name}", alternative.evaluation.metrics, alternative.evaluation.protocol)


def _quality_names(entries: Sequence[Entry]) -> list[str]:
    names = [measure.metric for entry in entries for measure in entry.measures if measure.metric not in COSTS]
    return list(dict.fromkeys(names))


def _rows(entries: Sequence[Entry], metrics: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """For each metric its name, the original's value, and a cell for each entry."""
    text = cost_row if metrics is COSTS else quality_row
    for metric in metrics:
        measures = [entry.measure(metric) for entry in entries]
        rows = [None if measure is None else text(measure) for measure in measures]
        present = next((row for row in rows if row is not None), None)
        if present is not None and metric == "latency_ms":  # of each with the original in turn, in a run of its own
            cells = ["" if row is None else f"{row.pruned}, original {row.original}" for row in rows]
            yield present.name, "", *cells
        elif present is not None:
            yield present.name, present.original, *("" if row is None else row.whole for row in rows)


def _warnings(models: Sequence[str], entries: Sequence[Entry], without: Sequence[str]) -> Iterator[str]:
    if len(models) > 1:
        yield f"The runs have different originals: {', '.join(models)}. Values of the original are those of the first."
    unmeasured = [entry.name for entry in entries if entry.protocol is None]
    if unmeasured:
        yield f"The quality was not measured yet: {', '.join(unmeasured)}."
    protocols = [entry.protocol for entry in entries if entry.protocol is not None]
    differing = [name for name in COMPARABLE if any(other.get(name) != protocols[0].get(name) for other in protocols)]
    if differing:
        yield f"The qualities do not compare: they were measured with different {', '.join(differing)}."
    if without:
        yield f"Samples of other seeds or prompts are not shown: {', '.join(without)}."


def _samples(folders: dict[str, RunFolder]) -> tuple[tuple[Sample, ...], list[str]]:
    """Samples of the first run's original and of each run's latest pipeline, and the runs that have other samples."""
    limit, joined, without = MAX_BYTES // len(folders), list[Sample](), list[str]()
    model = next(iter(folders.values())).model()
    for run, folder in folders.items():
        samples = read_samples(folder.samples, limit) if folder.model() == model and folder.has_samples else Samples()
        if not samples.shown:
            continue
        if not joined:
            joined = [sample.of({"original": "original"}) for sample in samples.shown if "original" in sample.media]
        pairs = [
            (first, own) for first, own in zip(joined, samples.shown, strict=False) if first.caption == own.caption
        ]
        if not pairs:
            without.append(run)
            continue
        latest = {samples.stages[-1]: f"{run}, {samples.stages[-1]}"}
        joined = [first.joined(own.of(latest)) for first, own in pairs]
    return tuple(joined), without


def _removed(folders: dict[str, RunFolder]) -> Iterator[Removed]:
    plans = {run: {planned.operator for planned in folder.plan().removed} for run, folder in folders.items()}
    for run, names in plans.items():
        others = set().union(*(removed for other, removed in plans.items() if other != run))
        yield Removed(run, len(names), tuple(sorted(names - others)))
