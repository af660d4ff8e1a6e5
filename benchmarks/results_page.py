"""docs/results.md from the committed cells of `benchmarks.rivals`: tables, headline, curves of weight preservation.

python -m benchmarks.results_page
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from benchmarks.contest import BUDGETS, CUTS, FEWER, GUIDED, LED, NAMES, NEW_WEIGHTS, NO_DATA, ORIGINAL, OURS
from benchmarks.records import RESULTS, ROOT, write_between
from benchmarks.rivals import HEADLINE
from benchmarks.subjects import SUBJECTS

DOCUMENT = ROOT / "docs" / "results.md"
CURVES = ROOT / "docs" / "weight-preservation.png"
LEARNT = {GUIDED: "the data, led", LED: "the original on data, led"}
# of a model: by rival, cut and steps of finetuning the cells of all seeds
Cells: TypeAlias = dict[tuple[str, float, int], list[dict[str, Any]]]


def main() -> None:
    """Writes the tables and the curves of all cells that are there."""
    found = {model: cells for model in SUBJECTS if (cells := _read(model))}
    write_between(
        "rivals", "\n".join(line for model, cells in found.items() for line in _tables(model, cells)), DOCUMENT
    )
    write_between("headline", "\n".join(_headline(found)) + "\n", DOCUMENT)
    write_between("recovery without data", "\n".join(_without_data(found)) + "\n", DOCUMENT)
    _draw_curves(found)


def _read(model: str) -> Cells:
    cells: Cells = defaultdict(list)
    for path in sorted((RESULTS / "rivals" / model).glob("*.json")):
        known = json.loads(path.read_text(encoding="utf-8"))
        settings, steps = known["settings"], int(path.stem.rpartition("-")[2])
        cells[settings["rival"], settings["cut"], steps].append(known)
    return dict(cells)


def _tables(model: str, cells: Cells) -> Iterator[str]:
    """One table for each cut, with the original beside."""
    for cut in sorted(CUTS):
        rows = [(name, _chosen(cells, name, cut, BUDGETS[model])) for name in NAMES]
        rows = [(name, known) for name, known in rows if known]
        if not any(name != ORIGINAL for name, _ in rows):
            continue
        yield f"### zoo:{model}, {cut:.0%} of the latency removed\n"
        reads = any("recall" in one["result"].get("before", {}) for _, known in rows for one in known)
        head = ["", "seeds", "latency kept", "parameters kept", "MACs kept", "before", "after", "beside ld-pruner"]
        head += ["captions found before", "after"] * reads
        yield "| " + " | ".join(head) + " |"
        yield "|---" * len(head) + "|"
        ours = _chosen(cells, OURS, cut, BUDGETS[model])
        for name, known in rows:
            row = [name, *_row(known), _beside(known, ours) if name != OURS else ""]
            row += [_recalled(known, when) for when in ("before", "after")] * reads
            yield "| " + " | ".join(row) + " |"
        yield ""


def _chosen(cells: Cells, name: str, cut: float, steps: int) -> list[dict[str, Any]]:
    return cells.get((name, 0.0 if name == ORIGINAL else cut, steps), [])


def _row(known: Sequence[dict[str, Any]]) -> list[str]:
    results = [one["result"] for one in known if "failure" not in one["result"]]
    if not results:
        return [str(len(known)), "cannot be reached", "", "", "", ""]
    kept = [np.mean([one[name] / one[f"original_{name}"] for one in results]) for name in ("parameters", "macs")]
    return [
        str(len(results)) + (f" of {len(known)}" if len(results) < len(known) else ""),
        _latency(results),
        *(f"{share:.1%}" for share in kept),
        _distance(results, "before"),
        _distance(results, "after"),
    ]


def _latency(results: Sequence[dict[str, Any]]) -> str:
    kept = [one["latency_ratio"]["median"] for one in results]
    return f"{np.mean(kept):.1%}" + (f" ({min(kept):.1%} to {max(kept):.1%})" if len(kept) > 1 else "")


def _beside(known: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]]) -> str:
    """How much farther than ours it ends, on the same seeds; what is not finetuned counts as it is."""
    pairs = _pairs(known, ours)
    return _percent([_value(one, "after") / _value(other, "after") - 1 for one, other in pairs]) if pairs else ""


def _recalled(known: Sequence[dict[str, Any]], when: str) -> str:
    """The share of pictures whose caption the judge finds, over seeds."""
    shares = [one["result"][when]["recall"] for one in known if "recall" in one["result"].get(when, {})]
    return f"{np.mean(shares):.1%}" if shares else ""


def _distance(results: Sequence[dict[str, Any]], when: str) -> str:
    """The mean over seeds and half of its 95 % interval (Student's t); of one seed the interval by resampling."""
    if not results or any(when not in one for one in results):
        return "diverged" if any("diverged" in one for one in results) else ""
    values = [one[when]["frechet_distance"] for one in results]
    if len(values) == 1:
        low, high = results[0][when]["interval"]
        return f"{values[0]:.2f} ({low:.2f} to {high:.2f})"
    return f"{np.mean(values):.2f} ± {_half(values):.2f}"


def _half(values: Sequence[float]) -> float:
    count = len(values)
    return float(scipy.stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count))


def _headline(found: dict[str, Cells]) -> Iterator[str]:
    """The longest finetuning of ours at half of the latency or less, beside the original's."""
    head = ["model", "seeds", "latency kept", "compute", "learns", "original", "ours, finetuned", "change"]
    head += ["original, finetuned", "original, fewer steps", "perfect denoiser"]
    yield "| " + " | ".join(head) + " |"
    yield "|---" * len(head) + "|"
    for model, cells in found.items():
        name, cut, steps, first, _ = HEADLINE[model]
        trained = cells.get((ORIGINAL, 0.0, first + steps), [])
        pairs = _pairs(cells.get((name, cut, steps), []), trained)
        if not pairs:
            continue
        ours, originals = ([pair[place] for pair in pairs] for place in (0, 1))
        row = (
            str(len(pairs)),
            _latency(ours),
            f"{np.mean([one['compute'] for one in ours]):.1%}",
            LEARNT[name],
            _distance(originals, "before"),
            _distance(ours, "after"),
            _percent([_value(one, "after") / _value(other, "before") - 1 for one, other in pairs]),
            _distance(originals, "after"),
            _distance([one for one, _ in _pairs(cells.get((FEWER, cut, steps), []), trained)], "before"),
            _distance(_perfect(model, [one["settings"]["seed"] for one in cells[name, cut, steps]]), "before"),
        )
        yield f"| zoo:{model} | " + " | ".join(row) + " |"


def _perfect(model: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """What a perfect denoiser would be measured at."""
    paths = [RESULTS / "perfect_denoiser" / f"{model}-{seed}.json" for seed in seeds]
    known = [json.loads(path.read_text(encoding="utf-8"))["result"] for path in paths if path.exists()]
    return [{"before": one} for one in known]


def _pairs(ones: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> list[tuple[Any, Any]]:
    """The results of cells of the same seed that came to an end."""
    known = {other["settings"]["seed"]: other["result"] for other in others if _is_whole(other["result"])}
    seeds = [(one["settings"]["seed"], one["result"]) for one in ones if _is_whole(one["result"])]
    return [(result, known[seed]) for seed, result in seeds if seed in known]


def _is_whole(result: dict[str, Any]) -> bool:
    return "before" in result and "diverged" not in result


def _value(result: dict[str, Any], when: str) -> float:
    """A distance; after no finetuning it is what it was before."""
    return float(result.get(when, result["before"])["frechet_distance"])


def _percent(changes: Sequence[float]) -> str:
    half = f" ± {_half(changes):.1%}" if len(changes) > 1 else ""
    return f"{np.mean(changes):+.1%}{half}"


def _without_data(found: dict[str, Cells]) -> Iterator[str]:
    """Which part of what data recover the original's own samples recover."""
    yield "| model | before | with data | without | recovered |"
    yield "|---|---|---|---|---|"
    for model, cells in found.items():
        known, free = (_chosen(cells, name, CUTS[0], BUDGETS[model]) for name in (OURS, NO_DATA))
        pairs = _pairs(known, free)
        if not pairs:
            continue
        distances = [(_value(one, "before"), _value(one, "after"), _value(other, "after")) for one, other in pairs]
        before, data, own = (float(np.mean(column)) for column in zip(*distances, strict=True))
        share = f"{(before - own) / (before - data):.0%}" if before > data else "data recovered nothing"
        yield f"| zoo:{model} | {before:.2f} | {data:.2f} | {own:.2f} | {share} |"


def _draw_curves(found: dict[str, Cells]) -> None:
    """The held-out loss over steps of finetuning, kept weights against new ones."""
    shown = [model for model, cells in found.items() if _chosen(cells, NEW_WEIGHTS, CUTS[0], BUDGETS[model])]
    if not shown:
        return
    figure = Figure(figsize=(4 * len(shown), 3), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)
    for axis, model in zip(axes[0], shown, strict=True):
        for name, label in ((OURS, "kept weights"), (NEW_WEIGHTS, "new weights")):
            curves = [
                {int(step): loss for step, loss in one["result"]["held_out"].items()}
                for one in _chosen(found[model], name, CUTS[0], BUDGETS[model])
                if "held_out" in one["result"]
            ]
            steps = sorted(curves[0]) if curves else []
            axis.plot(steps, [np.mean([curve[step] for curve in curves]) for step in steps], label=label)
        axis.set(title=f"zoo:{model}", xlabel="finetuning steps", ylabel="held-out loss", yscale="log")
        axis.legend()
    figure.savefig(CURVES, dpi=110)


if __name__ == "__main__":
    main()
