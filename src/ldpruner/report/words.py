"""Results as rows of text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ldpruner.evaluation.evaluate import Evaluation
from ldpruner.evaluation.measures import COSTS, Measure, cost_measures
from ldpruner.profiling.benchmark import Comparison

COST_NAMES = {
    "latency_ms": "latency",
    "latency_ratio": "latency ratio",
    "parameters": "parameters",
    "macs": "MACs",
    "peak_memory_bytes": "peak memory",
}
SHARED = ("parameters", "macs", "peak_memory_bytes")
ACRONYMS = ("clip", "cmmd", "dino", "kid", "lpips", "psnr", "ssim")
DECIMAL = ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"))
BINARY = ((2**30, " GiB"), (2**20, " MiB"), (2**10, " KiB"))


@dataclass(frozen=True)
class Row:
    """A quantity of both pipelines, as text.

    Attributes:
        metric: its name in `Measure`.
        name: as it is read.
        original, pruned: the values.
        interval: of the pruned pipeline's value.
        floor: the noise floor.
        share: what is left of it.
        verdict: whether it is worse.
    """

    metric: str
    name: str
    original: str
    pruned: str
    interval: str = ""
    floor: str = ""
    share: str = ""
    verdict: str = ""

    @property
    def whole(self) -> str:
        """The pruned pipeline's value with all that is beside it."""
        details = "; ".join(filter(None, [self.interval, self.share, self.verdict if self.verdict == "worse" else ""]))
        return f"{self.pruned} ({details})" if details else self.pruned


def percent(fraction: float) -> str:
    """A fraction as a percentage."""
    return f"{100 * fraction:.0f} %"


def minutes(hours: float | None) -> str:
    """Hours as minutes; nothing if they are not known."""
    return "" if hours is None else f"{60 * hours:.1f}"


def counted(metric: str, value: float) -> str:
    """A cost with its unit."""
    if metric == "latency_ms":
        return f"{value:,.1f} ms"
    if metric == "latency_ratio":
        return percent(value)
    units = BINARY if metric.endswith("bytes") else DECIMAL
    size, unit = next(((size, unit) for size, unit in units if value >= size), (1, ""))
    return f"{value / size:,.3g}{unit}"


def name_of(metric: str) -> str:
    """A metric as it is read."""
    name = " ".join(word.upper() if word in ACRONYMS else word for word in metric.split("_"))
    return COST_NAMES.get(metric) or name.replace("frechet", "Fréchet")


def short_name(model: str) -> str:
    """A Hub id or the name of a zoo model as it is; of a local folder its last part."""
    return Path(model).name if Path(model).exists() else model


def cost_measures_of(comparison: Comparison | None, evaluation: Evaluation | None) -> tuple[Measure, ...]:
    """What both pipelines cost: as the evaluation has timed them, or else as `run` has; empty if neither has."""
    measured = tuple(measure for measure in (evaluation.metrics if evaluation else ()) if measure.metric in COSTS)
    return measured or (tuple(cost_measures(comparison)) if comparison is not None else ())


def cost_rows(measures: Sequence[Measure]) -> list[Row]:
    """What both pipelines cost; the latency has its share as it was measured, pair by pair."""
    rows = {measure.metric: cost_row(measure) for measure in measures}
    ratio = rows.pop("latency_ratio", None)
    if ratio is not None and "latency_ms" in rows:
        rows["latency_ms"] = replace(rows["latency_ms"], share=ratio.pruned)
    return list(rows.values())


def cost_row(measure: Measure) -> Row:
    """A cost of both pipelines, and what is left of it."""
    metric, original, pruned = measure.metric, measure.original, measure.pruned
    return Row(
        metric,
        name_of(metric),
        original="" if original is None else counted(metric, original),
        pruned="" if pruned is None else counted(metric, pruned),
        interval=" to ".join(counted(metric, end) for end in measure.interval or ()),
        share=percent(pruned / original) if original and pruned is not None and metric in SHARED else "",
    )


def quality_rows(evaluation: Evaluation) -> Iterator[Row]:
    """The metrics of quality."""
    return map(quality_row, [measure for measure in evaluation.metrics if measure.metric not in COSTS])


def quality_row(measure: Measure) -> Row:
    """A metric of both pipelines, and its verdict."""
    return Row(
        measure.metric,
        name_of(measure.metric),
        original=_number(measure.original),
        pruned=_number(measure.pruned),
        interval=" to ".join(map(_number, measure.interval or ())),
        floor=_number(measure.noise_floor),
        verdict={True: "as good", False: "worse", None: ""}[measure.within_noise_floor],
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
