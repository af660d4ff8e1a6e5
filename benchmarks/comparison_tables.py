"""The tables of the comparison on three small models, and the curves of weight preservation."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from benchmarks.baselines import LONG_RUNS, TRIALS, LongRun
from benchmarks.cells import (
    Cells,
    change_text,
    distance_text,
    final_distance,
    latency_text,
    paired,
    percent_text,
    usual,
)
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
)
from benchmarks.records import ROOT, Record, markdown, read

CURVES = ROOT / "docs" / "weight-preservation.png"
TARGETS = {
    OURS: "data",
    NO_DATA: "distillation, no data",
    AUTOGUIDED: "data, autoguidance",
    DISTILLED: "distillation on data",
    DISTILLED_AUTOGUIDED: "distillation on data, autoguidance",
}


def comparison(model: str, cells: Cells) -> Iterator[str]:
    """A table for each cut, with the original in each."""
    for cut in sorted(CUTS):
        rows = {method: usual(cells, model, method, cut) for method in METHODS}
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
    change = change_text(records, ours) if method != OURS else ""
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
        latency_text(results),
        *(f"{ratio:.1%}" for ratio in ratios),
        distance_text(results, "before"),
        distance_text(results, "after"),
    ]


def _r_at_5(records: Sequence[Record], when: str) -> str:
    values = [one["result"][when]["r_at_5"] for one in records if "r_at_5" in one["result"].get(when, {})]
    return f"{np.mean(values):.1%}" if values else ""


def long_finetuning(cells: Mapping[str, Cells]) -> list[str]:
    """Ours with the longest finetuning, the original with as much, the original with fewer steps."""
    head = ["model", "seeds", "latency ratio", "compute", "target", "original", "ours, finetuned", "change"]
    head += ["original, finetuned", "original, fewer steps", "autoencoder bound"]
    rows = [_long_row(model, cells[model], LONG_RUNS[model]) for model in cells]
    return markdown(head, [row for row in rows if row])


def _long_row(model: str, cells: Cells, run: LongRun) -> list[str]:
    ours = cells.get((run.method, run.cut, run.steps, run.distillation_steps), [])
    trained = cells.get((ORIGINAL, 0.0, run.steps + run.distillation_steps, 0), [])
    pairs = paired(ours, trained)
    if not pairs:
        return []
    results, originals = ([pair[place] for pair in pairs] for place in (0, 1))
    fewer = paired(cells.get((FEWER_STEPS, run.cut, 1024, 0), []), trained)
    seeds = [record["settings"]["seed"] for record in ours]
    bounds = [
        {"before": record["result"]}
        for record in read("autoencoder_bound")
        if record["settings"]["model"] == model and record["settings"]["seed"] in seeds
    ]
    return [
        f"zoo:{model}",
        str(len(pairs)),
        latency_text(results),
        f"{np.mean([result['compute'] for result in results]):.1%}",
        TARGETS[run.method],
        distance_text(originals, "before"),
        distance_text(results, "after"),
        percent_text(
            [final_distance(own, "after") / final_distance(original, "before") - 1 for own, original in pairs]
        ),
        distance_text(originals, "after"),
        distance_text([result for result, _ in fewer], "before"),
        distance_text(bounds, "before"),
    ]


def trials(cells: Mapping[str, Cells]) -> list[str]:
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
            rows.append([*row, str(len(results)), f"{compute:.1%}", distance_text(results, "after")])
    return markdown(head, rows)


def without_data(cells: Mapping[str, Cells]) -> list[str]:
    """The share of the recovery by data that the original's own samples bring."""
    rows = []
    for model in cells:
        with_data, without = (usual(cells[model], model, method, CUTS[0]) for method in (OURS, NO_DATA))
        pairs = paired(with_data, without)
        if not pairs:
            continue
        distances = [
            (final_distance(one, "before"), final_distance(one, "after"), final_distance(other, "after"))
            for one, other in pairs
        ]
        before, data, own = (float(np.mean(column)) for column in zip(*distances, strict=True))
        share = f"{(before - own) / (before - data):.0%}" if before > data else "data recovered nothing"
        rows.append([f"zoo:{model}", f"{before:.2f}", f"{data:.2f}", f"{own:.2f}", share])
    return markdown(["model", "before", "with data", "without", "recovered"], rows)


def draw_curves(cells: Mapping[str, Cells]) -> None:
    """The validation loss over steps of finetuning, kept weights against reinitialised ones."""
    shown = [model for model in cells if usual(cells[model], model, REINITIALISED, CUTS[0])]
    if not shown:
        return
    figure = Figure(figsize=(4 * len(shown), 3), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)
    for axis, model in zip(axes[0], shown, strict=True):
        for method, label in ((OURS, "kept weights"), (REINITIALISED, "reinitialised")):
            curves = [
                {int(step): loss for step, loss in record["result"]["validation_losses"].items()}
                for record in usual(cells[model], model, method, CUTS[0])
                if "validation_losses" in record["result"]
            ]
            steps = sorted(curves[0]) if curves else []
            axis.plot(steps, [np.mean([curve[step] for curve in curves]) for step in steps], label=label)
        axis.set(title=f"zoo:{model}", xlabel="finetuning steps", ylabel="validation loss", yscale="log")
        axis.legend()
    figure.savefig(CURVES, dpi=110)
