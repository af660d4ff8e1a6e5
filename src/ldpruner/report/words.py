"""Results as rows of text."""

from collections.abc import Iterator
from dataclasses import dataclass

from ldpruner.evaluation.evaluate import Evaluation
from ldpruner.evaluation.measures import COSTS, Measure
from ldpruner.profiling.benchmark import Comparison, Percentiles

COUNTED = {"parameters": "parameters", "macs": "MACs", "peak_memory_bytes": "peak memory"}
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


def percent(fraction: float) -> str:
    """A fraction as a percentage."""
    return f"{100 * fraction:.0f} %"


def minutes(hours: float | None) -> str:
    """Hours as minutes; nothing if they are not known."""
    return "" if hours is None else f"{60 * hours:.1f}"


def counted(metric: str, value: float) -> str:
    """A count or a number of bytes, with a unit."""
    units = BINARY if metric.endswith("bytes") else DECIMAL
    size, unit = next(((size, unit) for size, unit in units if value >= size), (1, ""))
    return f"{value / size:,.3g}{unit}"


def milliseconds(time: Percentiles) -> str:
    """The median and the spread of timings."""
    return f"{time.median:,.1f} ms ({time.p10:,.1f} to {time.p90:,.1f})"


def cost_rows(comparison: Comparison) -> Iterator[Row]:
    """What both pipelines cost."""
    original, pruned = comparison.pipelines
    times = milliseconds(original.latency_ms), milliseconds(pruned.latency_ms)
    yield Row("latency_ms", "latency", *times, share=percent(comparison.ratio))
    for metric, name in COUNTED.items():
        values = getattr(original, metric), getattr(pruned, metric)
        texts = [counted(metric, value) for value in values]
        yield Row(metric, name, *texts, share=percent(values[1] / max(1, values[0])))


def quality_rows(evaluation: Evaluation) -> Iterator[Row]:
    """The metrics of quality."""
    return map(_quality, [measure for measure in evaluation.metrics if measure.metric not in COSTS])


def _quality(measure: Measure) -> Row:
    values = ["" if value is None else f"{value:.4g}" for value in (measure.original, measure.pruned)]
    interval = " to ".join(f"{end:.4g}" for end in measure.interval or ())
    floor = "" if measure.noise_floor is None else f"{measure.noise_floor:.4g}"
    verdict = {True: "as good", False: "worse", None: ""}[measure.within_noise_floor]
    name = measure.metric.replace("_", " ").replace("frechet", "Fréchet")
    return Row(measure.metric, name, *values, interval=interval, floor=floor, verdict=verdict)
