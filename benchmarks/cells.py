"""The cells of the comparison, and what their tables say of them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import scipy.stats

from benchmarks.comparison import FEWER_STEPS, ORIGINAL, TRAIN_STEPS
from benchmarks.records import Record, read

# of a model: by method, cut, training steps and distillation steps the records of all seeds
Cells: TypeAlias = Mapping[tuple[str, float, int | None, int], list[Record]]
Result: TypeAlias = Mapping[str, Any]


def cells_of(model: str) -> Cells:
    cells = defaultdict(list)
    for record in read("baselines"):
        settings = record["settings"]
        if settings["model"] == model and "repeat" not in settings:
            steps = settings["training"] and settings["training"]["max_train_steps"]
            place = steps or settings["pictures"]  # fewer steps are not finetuned, but have several picture counts
            cells[settings["method"], settings["cut"], place, settings.get("distillation_steps", 0)].append(record)
    return dict(cells)


def usual(cells: Cells, model: str, method: str, cut: float) -> list[Record]:
    """The cells of the comparison, all with the usual training."""
    place = 256 if method == FEWER_STEPS else TRAIN_STEPS[model]
    return cells.get((method, 0.0 if method == ORIGINAL else cut, place, 0), [])


def paired(first: Sequence[Record], second: Sequence[Record]) -> list[tuple[Result, Result]]:
    """Results of both on the same seeds."""
    results = {record["settings"]["seed"]: record["result"] for record in second if is_measured(record["result"])}
    return [
        (record["result"], results[record["settings"]["seed"]])
        for record in first
        if record["settings"]["seed"] in results and is_measured(record["result"])
    ]


def is_measured(result: Result) -> bool:
    return "before" in result and "diverged" not in result


def final_distance(result: Result, when: str) -> float:
    """A distance; without finetuning the one before."""
    return float(result.get(when, result["before"])["frechet_distance"])


def latency_text(results: Sequence[Result]) -> str:
    ratios = [result["latency_ratio"]["median"] for result in results]
    return f"{np.mean(ratios):.1%}" + (f" ({min(ratios):.1%} to {max(ratios):.1%})" if len(ratios) > 1 else "")


def distance_text(results: Sequence[Result], when: str) -> str:
    """The mean over seeds and half of its 95 % interval (Student's t); for one seed the bootstrap interval."""
    if not results or any(when not in result for result in results):
        return "diverged" if any("diverged" in result for result in results) else ""
    values = [result[when]["frechet_distance"] for result in results]
    if len(values) == 1:
        low, high = results[0][when]["interval"]
        return f"{values[0]:.2f} ({low:.2f} to {high:.2f})"
    return f"{np.mean(values):.2f} ± {half_interval(values):.2f}"


def change_text(records: Sequence[Record], ours: Sequence[Record]) -> str:
    """The relative change of the final distance, on the same seeds."""
    pairs = paired(records, ours)
    return (
        percent_text([final_distance(other, "after") / final_distance(own, "after") - 1 for other, own in pairs])
        if pairs
        else ""
    )


def percent_text(changes: Sequence[float]) -> str:
    half = f" ± {half_interval(changes):.1%}" if len(changes) > 1 else ""
    return f"{np.mean(changes):+.1%}{half}"


def half_interval(values: Sequence[float]) -> float:
    count = len(values)
    return float(scipy.stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
