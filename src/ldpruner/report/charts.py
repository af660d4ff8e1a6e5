"""Charts of the page, as places in a drawing that its template fills."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ldpruner.finetuning.settings import History
from ldpruner.report.words import percent
from ldpruner.scoring.results import Score, Scores

WIDTH, HEIGHT = 640, 340  # of a drawing
LEFT, RIGHT, TOP, BOTTOM = 76, 28, 16, 52  # margins of the plot in it
MAX_TICKS = 6
STEPS = (1, 2, 5, 10)  # between ticks, times a power of ten


@dataclass(frozen=True)
class Tick:
    """A value on an axis: its place in the drawing, and its text."""

    place: float
    text: str


@dataclass(frozen=True)
class Axis:
    """A quantity along a side of the plot."""

    title: str
    ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Mark:
    """A point of the chart.

    Attributes:
        x, y: its place in the drawing.
        text: what it says when it is pointed at.
        operator: the place of its operator in the map; None if it is of none.
        is_chosen: whether it is the one that counts.
    """

    x: float
    y: float
    text: str = ""
    operator: int | None = None
    is_chosen: bool = False


@dataclass(frozen=True)
class Chart:
    """A drawing of `WIDTH` by `HEIGHT`.

    Attributes:
        name: of the chart on the page.
        title: what it shows, for those who cannot see it.
        marks: its points.
        is_joined: whether a line goes through them.
        is_labelled: whether their texts are always there.
    """

    name: str
    title: str
    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    is_joined: bool
    is_labelled: bool = False

    @property
    def line(self) -> str:
        """The points of the line, as SVG has them."""
        return " ".join(f"{mark.x:.1f},{mark.y:.1f}" for mark in self.marks) if self.is_joined else ""


@dataclass(frozen=True)
class Point:
    """A point of the chart in its own quantities; the other fields are those of `Mark`."""

    x: float
    y: float
    text: str = ""
    operator: int | None = None
    is_chosen: bool = False


def importance_chart(operators: Sequence[Score], scores: Scores) -> Chart | None:
    """What each operator matters beside what it saves; None if none was sampled."""
    points = [
        Point(max(0.0, score.savings.fraction(scores.costs, "latency")), score.score, operator=place)
        for place, score in enumerate(operators)
        if math.isfinite(score.score) and score.score > 0
    ]
    title = "Score of each operator beside the latency that its removal saves"
    return _chart("importance", title, ("latency saved", "score"), points, x_text=_percent, is_log=True)


def frontier_chart(plans: Iterable[tuple[float, float]], chosen: tuple[float, float]) -> Chart | None:
    """The predicted latent shift beside the predicted latency of plans, and of the one that was chosen."""
    points = [Point(latency, shift, f"{percent(latency)} of the latency: {shift:.3g}") for latency, shift in plans]
    points.append(Point(*chosen, f"this run's plan, {percent(chosen[0])} of the latency: {chosen[1]:.3g}", None, True))
    points.sort(key=lambda point: point.x)
    title = "Predicted latent shift of the best plan for each latency"
    return _chart("frontier", title, ("latency left", "latent shift"), points, x_text=_percent, is_joined=True)


def training_chart(history: History) -> Chart | None:
    """The quality or, without one, the validation loss by step."""
    values = history.qualities or history.validation_losses
    name = "quality" if history.qualities else "validation loss"
    points = [
        Point(step, value, f"step {step}: {value:.4g}", None, step == history.best_step)
        for step, value in values.items()
    ]
    title = f"{name.capitalize()} by step of finetuning"
    return _chart("training", title, ("step", name), points, x_text="{:,.0f}".format, is_joined=True)


def quality_chart(metric: str, points: Sequence[Point]) -> Chart | None:
    """A metric of several pipelines beside their latency."""
    title = f"{metric} and latency of each pipeline"
    chart = _chart("quality", title, ("latency, of the original's", metric), points, x_text=_percent)
    return replace(chart, is_labelled=True) if chart is not None else None


def _chart(
    name: str,
    title: str,
    quantities: tuple[str, str],
    points: Sequence[Point],
    *,
    x_text: Callable[[float], str],
    is_log: bool = False,
    is_joined: bool = False,
) -> Chart | None:
    if not points:
        return None
    across = _Scale([point.x for point in points], LEFT, WIDTH - RIGHT, is_log=False)
    up = _Scale([point.y for point in points], HEIGHT - BOTTOM, TOP, is_log=is_log)
    marks = [
        Mark(across.place(point.x), up.place(point.y), point.text, point.operator, point.is_chosen) for point in points
    ]
    axes = Axis(quantities[0], across.ticks(x_text)), Axis(quantities[1], up.ticks("{:,.6g}".format))
    return Chart(name, title, *axes, tuple(marks), is_joined)


def _percent(fraction: float) -> str:
    """With as many digits as neighbouring ticks need to differ."""
    return f"{100 * fraction:.4g} %"


class _Scale:
    """Places of values between two ends of the drawing; the ends are ticks."""

    def __init__(self, values: Sequence[float], first: float, last: float, *, is_log: bool) -> None:
        self.first, self.last, self.is_log = first, last, is_log
        low, high = min(values), max(values)
        self.values = _decades(low, high) if is_log else _steps(low, high)

    def place(self, value: float) -> float:
        low, high = self.values[0], self.values[-1]
        if self.is_log:
            low, high, value = map(math.log, (low, high, value))
        return self.first + (self.last - self.first) * (value - low) / (high - low)

    def ticks(self, text: Callable[[float], str]) -> tuple[Tick, ...]:
        return tuple(Tick(self.place(value), text(value)) for value in self.values)


def _steps(low: float, high: float) -> list[float]:
    """Round values at equal distances, the first not above `low` and the last not below `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / MAX_TICKS))
    step = next(power * factor for factor in STEPS if span / (power * factor) <= MAX_TICKS)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * place for place in range(first, max(last, first + 1) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten, the first not above `low` and the last not below `high`."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**place for place in range(first, max(last, first + 1) + 1)]
