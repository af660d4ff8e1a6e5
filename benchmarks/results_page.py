"""All tables of the documents, from the committed records, and the curves of weight preservation.

python -m benchmarks.results_page
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, starmap
from typing import Any, TypeAlias

import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from benchmarks import (
    adaptive_replay,
    choices,
    coverage,
    demo,
    few_step,
    finetuning_defaults,
    granularity,
    latency_predictions,
    lora_recovery,
    lora_transfer,
    metric_design,
    recovery,
    selection_rules,
    stacking,
    support,
    tasks,
    training_memory,
)
from benchmarks.baselines import LONG_RUNS, TRIALS, LongRun
from benchmarks.comparison import (
    AUTOGUIDED,
    CUTS,
    DISTILLED,
    DISTILLED_AUTOGUIDED,
    FEWER_STEPS,
    METHODS,
    NO_DATA,
    ORIGINAL,
    OURS,
    REINITIALISED,
    TRAIN_STEPS,
)
from benchmarks.models import EARLIER, MEASURED
from benchmarks.records import ROOT, Record, markdown, read, write_table

DOCUMENTS = ROOT / "docs"
CURVES = DOCUMENTS / "weight-preservation.png"
TARGETS = {
    OURS: "data",
    NO_DATA: "distillation, no data",
    AUTOGUIDED: "data, autoguidance",
    DISTILLED: "distillation on data",
    DISTILLED_AUTOGUIDED: "distillation on data, autoguidance",
}
# of a model: by method, cut, training steps and distillation steps the records of all seeds
Cells: TypeAlias = Mapping[tuple[str, float, int | None, int], list[Record]]
Result: TypeAlias = Mapping[str, Any]


def main() -> None:
    """Writes every table between its markers, and draws the curves."""
    cells = {model: _cells(model) for model in MEASURED}
    tables: Mapping[str, Callable[[], Iterator[str]]] = {
        "experiments/comparison.md: comparison": lambda: chain.from_iterable(starmap(_comparison, cells.items())),
        "experiments/comparison.md: long finetuning": lambda: iter(_long_finetuning(cells)),
        "experiments/comparison.md: without data": lambda: iter(_without_data(cells)),
        "prune-your-own.md: forecast": granularity.forecast_table,
        "experiments/granularity.md: plans": granularity.plans_table,
        "experiments/autoguidance.md: trials": lambda: iter(_trials(cells)),
        "experiments/metric-design.md: metrics": metric_design.tables,
        "experiments/adaptive-scoring.md: replays": adaptive_replay.table,
        "experiments/adaptive-scoring.md: finetuned": adaptive_replay.finetuned_table,
        "experiments/selection-rules.md: rules": selection_rules.table,
        "experiments/latency-predictions.md: latency": latency_predictions.table,
        "experiments/lora-transfer.md: lora": lora_transfer.table,
        "experiments/lora-recovery.md: lora recovery": lora_recovery.table,
        "experiments/stacking.md: stacking": stacking.table,
        "experiments/stacking.md: compute bound": stacking.compute_bound_table,
        "experiments/training-memory.md: memory": training_memory.table,
        "experiments/end-to-end.md: demo": demo.table,
        "experiments/end-to-end.md: tasks": tasks.table,
        "experiments/coverage.md: coverage": coverage.table,
        "experiments/support.md: support summary": support.summary,
        "experiments/support.md: support": support.table,
        "experiments/support.md: recovery summary": recovery.summary,
        "experiments/support.md: recovery": recovery.table,
        "experiments/few-step.md: few-step": few_step.table,
        "experiments/choices.md: choices": choices.table,
        "experiments/finetuning-defaults.md: finetuning defaults": finetuning_defaults.table,
        "experiments/finetuning-defaults.md: finetuning length": finetuning_defaults.length_table,
        "../README.md: readme": lambda: iter(_readme(cells[EARLIER])),
    }
    for place, table in tables.items():
        document, _, name = place.partition(": ")
        write_table(name, table(), DOCUMENTS / document)
    _draw_curves(cells)


def _cells(model: str) -> Cells:
    cells = defaultdict(list)
    for record in read("baselines"):
        settings = record["settings"]
        if settings["model"] == model and "repeat" not in settings:
            steps = settings["training"] and settings["training"]["max_train_steps"]
            place = steps or settings["pictures"]  # fewer steps are not finetuned, but have several picture counts
            cells[settings["method"], settings["cut"], place, settings.get("distillation_steps", 0)].append(record)
    return dict(cells)


def _usual(cells: Cells, model: str, method: str, cut: float) -> list[Record]:
    """The cells of the comparison, all with the usual training."""
    place = 256 if method == FEWER_STEPS else TRAIN_STEPS[model]
    return cells.get((method, 0.0 if method == ORIGINAL else cut, place, 0), [])


def _comparison(model: str, cells: Cells) -> Iterator[str]:
    """A table for each cut, with the original in each."""
    for cut in sorted(CUTS):
        rows = {method: _usual(cells, model, method, cut) for method in METHODS}
        rows = {method: records for method, records in rows.items() if records}
        if set(rows) <= {ORIGINAL}:
            continue
        reads = any("r_at_5" in one["result"].get("before", {}) for records in rows.values() for one in records)
        head = ["method", "seeds", "latency ratio", "parameters", "MACs", "before", "after", "change against ours"]
        head += ["R@5 before", "after"] * reads
        ours = rows.get(OURS, [])
        yield f"### zoo:{model}, {cut:.0%} of the latency removed\n"
        yield from markdown(head, ([name, *_row(name, rows[name], ours, reads=reads)] for name in rows))
        yield ""


def _row(method: str, records: Sequence[Record], ours: Sequence[Record], *, reads: bool) -> list[str]:
    change = _change_against(records, ours) if method != OURS else ""
    return [*_costs_and_quality(records), change, *([_r_at_5(records, when) for when in ("before", "after")] * reads)]


def _costs_and_quality(records: Sequence[Record]) -> list[str]:
    results = [record["result"] for record in records if "failure" not in record["result"]]
    if not results:
        return [str(len(records)), "cannot be reached", "", "", "", ""]
    ratios = [
        np.mean([result[name] / result[f"original_{name}"] for result in results]) for name in ("parameters", "macs")
    ]
    return [
        str(len(results)) + (f" of {len(records)}" if len(results) < len(records) else ""),
        _latency(results),
        *(f"{ratio:.1%}" for ratio in ratios),
        _distance(results, "before"),
        _distance(results, "after"),
    ]


def _latency(results: Sequence[Result]) -> str:
    ratios = [result["latency_ratio"]["median"] for result in results]
    return f"{np.mean(ratios):.1%}" + (f" ({min(ratios):.1%} to {max(ratios):.1%})" if len(ratios) > 1 else "")


def _change_against(records: Sequence[Record], ours: Sequence[Record]) -> str:
    """The relative change of the final distance, on the same seeds."""
    pairs = _pairs(records, ours)
    return _percent([_value(other, "after") / _value(own, "after") - 1 for other, own in pairs]) if pairs else ""


def _r_at_5(records: Sequence[Record], when: str) -> str:
    values = [one["result"][when]["r_at_5"] for one in records if "r_at_5" in one["result"].get(when, {})]
    return f"{np.mean(values):.1%}" if values else ""


def _distance(results: Sequence[Result], when: str) -> str:
    """The mean over seeds and half of its 95 % interval (Student's t); for one seed the bootstrap interval."""
    if not results or any(when not in result for result in results):
        return "diverged" if any("diverged" in result for result in results) else ""
    values = [result[when]["frechet_distance"] for result in results]
    if len(values) == 1:
        low, high = results[0][when]["interval"]
        return f"{values[0]:.2f} ({low:.2f} to {high:.2f})"
    return f"{np.mean(values):.2f} ± {_half(values):.2f}"


def _half(values: Sequence[float]) -> float:
    count = len(values)
    return float(scipy.stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count))


def _percent(changes: Sequence[float]) -> str:
    half = f" ± {_half(changes):.1%}" if len(changes) > 1 else ""
    return f"{np.mean(changes):+.1%}{half}"


def _value(result: Result, when: str) -> float:
    """A distance; without finetuning the one before."""
    return float(result.get(when, result["before"])["frechet_distance"])


def _pairs(first: Sequence[Record], second: Sequence[Record]) -> list[tuple[Result, Result]]:
    """Results of both on the same seeds."""
    results = {record["settings"]["seed"]: record["result"] for record in second if _is_measured(record["result"])}
    return [
        (record["result"], results[record["settings"]["seed"]])
        for record in first
        if record["settings"]["seed"] in results and _is_measured(record["result"])
    ]


def _is_measured(result: Result) -> bool:
    return "before" in result and "diverged" not in result


def _long_finetuning(cells: Mapping[str, Cells]) -> list[str]:
    """Ours with the longest finetuning, the original with as much, the original with fewer steps."""
    head = ["model", "seeds", "latency ratio", "compute", "target", "original", "ours, finetuned", "change"]
    head += ["original, finetuned", "original, fewer steps", "autoencoder bound"]
    rows = [_long_row(model, cells[model], LONG_RUNS[model]) for model in cells]
    return markdown(head, [row for row in rows if row])


def _long_row(model: str, cells: Cells, run: LongRun) -> list[str]:
    ours = cells.get((run.method, run.cut, run.steps, run.distillation_steps), [])
    trained = cells.get((ORIGINAL, 0.0, run.steps + run.distillation_steps, 0), [])
    pairs = _pairs(ours, trained)
    if not pairs:
        return []
    results, originals = ([pair[place] for pair in pairs] for place in (0, 1))
    fewer = _pairs(cells.get((FEWER_STEPS, run.cut, 1024, 0), []), trained)
    seeds = [record["settings"]["seed"] for record in ours]
    bounds = [
        {"before": record["result"]}
        for record in read("autoencoder_bound")
        if record["settings"]["model"] == model and record["settings"]["seed"] in seeds
    ]
    return [
        f"zoo:{model}",
        str(len(pairs)),
        _latency(results),
        f"{np.mean([result['compute'] for result in results]):.1%}",
        TARGETS[run.method],
        _distance(originals, "before"),
        _distance(results, "after"),
        _percent([_value(own, "after") / _value(original, "before") - 1 for own, original in pairs]),
        _distance(originals, "after"),
        _distance([result for result, _ in fewer], "before"),
        _distance(bounds, "before"),
    ]


def _trials(cells: Mapping[str, Cells]) -> list[str]:
    """Every long finetuning of ld-pruner at half of the latency, a row for each setting."""
    head = ["model", "target", "distillation steps", "steps", "scale", "noise levels", "seeds", "compute", "after"]
    rows = []
    for model in cells:
        for run in (LONG_RUNS[model], *TRIALS[model]):
            records = cells[model].get((run.method, run.cut, run.steps, run.distillation_steps), [])
            results = [record["result"] for record in records]
            if not results:
                continue
            training = records[0]["settings"]["training"]
            levels = " to ".join(f"{level:g}" for level in training["guidance_interval"])
            scale = training["autoguidance_scale"]
            row = [f"zoo:{model}", TARGETS[run.method], str(run.distillation_steps), str(run.steps)]
            row += [f"{scale:g}", levels] if scale else ["", ""]
            compute = np.mean([result["compute"] for result in results])
            rows.append([*row, str(len(results)), f"{compute:.1%}", _distance(results, "after")])
    return markdown(head, rows)


def _without_data(cells: Mapping[str, Cells]) -> list[str]:
    """The share of the recovery by data that the original's own samples bring."""
    rows = []
    for model in cells:
        with_data, without = (_usual(cells[model], model, method, CUTS[0]) for method in (OURS, NO_DATA))
        pairs = _pairs(with_data, without)
        if not pairs:
            continue
        distances = [(_value(one, "before"), _value(one, "after"), _value(other, "after")) for one, other in pairs]
        before, data, own = (float(np.mean(column)) for column in zip(*distances, strict=True))
        share = f"{(before - own) / (before - data):.0%}" if before > data else "data recovered nothing"
        rows.append([f"zoo:{model}", f"{before:.2f}", f"{data:.2f}", f"{own:.2f}", share])
    return markdown(["model", "before", "with data", "without", "recovered"], rows)


def _readme(cells: Cells) -> list[str]:
    """Cost of the end-to-end task and quality of the comparison, with 35 % of the latency removed."""
    (result,) = (record["result"] for record in read("tasks") if record["settings"]["model"] == EARLIER)
    pair = result["pipelines"]
    sizes, memory = ([cost[name] for cost in pair] for name in ("parameters", "peak_memory_bytes"))
    rows = [
        ["parameters of the denoiser", *(f"{size / 1e6:.2f} M" for size in sizes), _rounded(sizes[1] / sizes[0])],
        [
            "latency of one picture",
            *(f"{cost['latency_ms']['median']:.0f} ms" for cost in pair),
            _rounded(result["latency_ratio"]["median"]),
        ],
        ["peak memory", *(f"{size / 2**20:.1f} MiB" for size in memory), _rounded(memory[1] / memory[0])],
    ]
    ((own, other),) = _pairs(_usual(cells, EARLIER, OURS, 0.35), _usual(cells, EARLIER, ORIGINAL, 0.35))
    for when in ("before", "after"):
        change = _rounded(_value(own, when) / _value(other, when))
        rows.append(
            [f"Fréchet distance {when} finetuning", f"{_value(other, when):.2f}", _distance([own], when), change]
        )
    return markdown(["", "original", "pruned", "change"], rows)


def _rounded(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.0f} %"


def _draw_curves(cells: Mapping[str, Cells]) -> None:
    """The validation loss over steps of finetuning, kept weights against reinitialised ones."""
    shown = [model for model in cells if _usual(cells[model], model, REINITIALISED, CUTS[0])]
    if not shown:
        return
    figure = Figure(figsize=(4 * len(shown), 3), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)
    for axis, model in zip(axes[0], shown, strict=True):
        for method, label in ((OURS, "kept weights"), (REINITIALISED, "reinitialised")):
            curves = [
                {int(step): loss for step, loss in record["result"]["validation_losses"].items()}
                for record in _usual(cells[model], model, method, CUTS[0])
                if "validation_losses" in record["result"]
            ]
            steps = sorted(curves[0]) if curves else []
            axis.plot(steps, [np.mean([curve[step] for curve in curves]) for step in steps], label=label)
        axis.set(title=f"zoo:{model}", xlabel="finetuning steps", ylabel="validation loss", yscale="log")
        axis.legend()
    figure.savefig(CURVES, dpi=110)


if __name__ == "__main__":
    main()
