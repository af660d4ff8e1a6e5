"""The figures of `docs/method.md` and `docs/architecture.md`: `python -m benchmarks.figures [--pictures]` draws them.

Curves and points come from the committed records of `benchmarks.method`, the layers from `pyproject.toml`. Only the
pictures are sampled: with `--pictures`, in a minute.
"""

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

import ldpruner
from benchmarks.method import MODEL, STUDY
from benchmarks.records import ROOT, read
from ldpruner.evaluation.samples import sample_batch
from ldpruner.operators.discovery import Removal
from ldpruner.selection.plan import PlannedRemoval

FIGURES = ROOT / "docs" / "figures"
SHOWN = ("mid_block", "down_blocks.1.attentions.1", "down_blocks.0.resnets.0")  # each is removed alone in the pictures
SEEDS, STEPS, SCALE, GAP = 8, 10, 2, 4
KEPT = 0.65  # of the latency, by the plan that the points show
COLORS = {"block": "#0f766e", "leaf": "#94a3b8"}
STAGES = {"down_blocks": "down", "mid_block": "middle", "up_blocks": "up"}
STYLE: Any = {  # matplotlib types each name
    "svg.hashsalt": "ld-pruner",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
STEPS_OF_THE_METHOD = {
    "cli": "parse, call, print",
    "recipes": "a run from a file",
    "exporting": "other runtimes",
    "report": "a run as a page",
    "workflow": "a whole run",
    "evaluation": "cost and quality",
    "finetuning": "distillation from the original",
    "pruning": "surgery, saving, loading",
    "selection": "scores + budget = plan",
    "scoring": "how much each operator matters",
    "profiling": "latency, memory, MACs",
    "operators": "trace, discover, patch",
    "pipelines": "run, watch and seed any pipeline",
}
Record = Mapping[str, Any]


def main() -> None:
    """Writes all figures; the pictures only if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", action="store_true", help="sample the pictures of single removals too")
    pictures = parser.parse_args().pictures
    FIGURES.mkdir(exist_ok=True)
    plot_all(FIGURES)
    if pictures:
        _draw_pictures(FIGURES / "removals.png")


def plot_all(folder: Path) -> None:
    """Writes every figure that needs no model."""
    (folder / "layers.svg").write_text(layers_svg(), encoding="utf-8")
    plots: Mapping[str, Callable[[Axes], None]] = {"depth": _depth, "savings": _savings, "frontier": _frontier}
    with mpl.rc_context(STYLE):
        for name, plot in plots.items():
            figure = Figure(figsize=(7.2, 3.6), layout="constrained")
            plot(figure.subplots())
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def _modifications() -> Sequence[Record]:
    (record,) = (record for record in read(STUDY) if record["settings"]["of"] == "scores")
    return list(record["result"]["modifications"])


def _plans(rule: str) -> Sequence[Record]:
    """The plans of a rule, the smallest cut first."""
    records = [record for record in read(STUDY) if record["settings"].get("rule") == rule]
    return sorted(records, key=lambda record: -record["settings"]["latency"])


def _removed() -> set[str]:
    """The operators that the plan for `KEPT` removes."""
    (plan,) = (record for record in _plans("knapsack") if record["settings"]["latency"] == KEPT)
    return {operator for operator, _ in plan["result"]["removed"]}


def _depth(axes: Axes) -> None:
    """The score of each modification in the order in which its operator runs."""
    points = [{**row, "place": place} for place, row in enumerate(_modifications())]
    _scatter(axes, points, "place")
    for prefix, stage in STAGES.items():
        places = [row["place"] for row in points if row["removal"]["operator"].startswith(prefix)]
        center = (min(places) + max(places)) / 2
        axes.axvline(min(places) - 0.5, color="#cbd5e1", linewidth=0.8, zorder=0)
        axes.annotate(
            stage, (center, 1), xycoords=("data", "axes fraction"), ha="center", va="top", color="#475569", fontsize=9
        )
    axes.set(xlabel="operators, in the order in which they run", ylabel="score")


def _savings(axes: Axes) -> None:
    """The score of each modification against what it saves."""
    _scatter(axes, [{**row, "percent": 100 * row["latency_saved"]} for row in _modifications()], "percent")
    axes.set(xlabel="saved if removed alone, % of the latency", ylabel="score", xscale="log")
    axes.set_xticks([0.1, 1, 5], labels=["0.1", "1", "5"])


def _scatter(axes: Axes, rows: Sequence[Record], horizontal: str) -> None:
    for granularity, label in (("leaf", "single layer"), ("block", "block")):
        group = [row for row in rows if row["granularity"] == granularity]
        places, scores = [row[horizontal] for row in group], [row["score"] for row in group]
        axes.scatter(places, scores, s=22 if granularity == "block" else 12, color=COLORS[granularity], label=label)
    removed = [row for row in rows if row["removal"]["operator"] in _removed()]
    places, scores = [row[horizontal] for row in removed], [row["score"] for row in removed]
    label = f"removed to keep {KEPT:.0%} of the latency"
    axes.scatter(places, scores, s=70, facecolors="none", edgecolors="#dc2626", label=label)
    axes.set(yscale="log")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=3)


def _frontier(axes: Axes) -> None:
    """Latent shift against latency: predicted and measured plans."""
    knapsack, greedy = _plans("knapsack"), _plans("greedy")
    lines = (
        (knapsack, "predicted_shift", "--", "knapsack, predicted", "#0f766e"),
        (knapsack, "shift", "o-", "knapsack, measured", "#0f766e"),
        (greedy, "shift", "s-", "greedy, measured", "#b45309"),
    )
    for records, name, style, label, color in lines:
        kept = [100 * record["result"]["latency"]["median"] for record in records]
        axes.plot(kept, [record["result"][name] for record in records], style, label=label, color=color, markersize=4)
    (scores,) = (record for record in read(STUDY) if record["settings"]["of"] == "scores")
    axes.axhline(scores["result"]["noise_floor"], color="#64748b", linestyle=":", label="noise floor")
    axes.set(xlabel="measured latency, % of the original", ylabel="latent shift of the whole plan", yscale="log")
    axes.invert_xaxis()
    axes.legend()


def _draw_pictures(path: Path) -> None:
    """A row of samples for the original, and one for each of the removals shown alone."""
    pipeline = ldpruner.load(MODEL)
    probe = ldpruner.Probe(samples=SEEDS, steps=STEPS)
    removals = {row["removal"]["operator"]: row["removal"] for row in _modifications()}
    plans = [ldpruner.Plan(removed=(PlannedRemoval(removal=Removal(**removals[name])),)) for name in SHOWN]
    rows = []
    for pruned in (pipeline, *(ldpruner.prune(pipeline, plan) for plan in plans)):
        pictures = sample_batch(pruned, probe, range(SEEDS)).pictures
        assert pictures is not None
        enlarged = pictures[:, 0].repeat(SCALE, axis=1).repeat(SCALE, axis=2)
        rows.append(np.concatenate(np.pad(enlarged, ((0, 0), (0, GAP), (0, GAP), (0, 0))).astype(np.uint8), axis=1))
    Image.fromarray(np.concatenate(rows)).quantize(256).save(path, optimize=True)


def layers() -> Iterator[list[str]]:
    """The layers of the package from top to bottom, each a list of its modules, as import-linter checks them."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (block,) = re.findall(r"^layers = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    for layer in re.findall(r'"(.+)"', block):
        yield layer.split(" : ")


def layers_svg(width: int = 900, height: int = 46, gap: int = 10) -> str:
    """The layers as rows of boxes: each row may import those below it."""
    boxes = []
    rows = list(layers())
    for row, modules in enumerate(rows):
        side = (width - gap * (len(modules) - 1)) / len(modules)
        for column, name in enumerate(modules):
            boxes.append(_box(name, column * (side + gap), row * (height + gap), side, height))
    total = len(rows) * (height + gap) - gap
    style = "rect{fill:#f0fdfa;stroke:#0f766e}text{font:13px sans-serif;text-anchor:middle}.name{font-weight:bold}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 -8 {width + 16} {total + 16}">'
    paper = f'<path fill="#fff" d="M-8-8h{width + 16}v{total + 16}h-{width + 16}z"/>'
    return "\n".join([head, f"<style>{style}</style>", paper, *boxes, "</svg>", ""])


def _box(name: str, left: float, top: float, width: float, height: float) -> str:
    step = STEPS_OF_THE_METHOD.get(name, "")
    center, first = left + width / 2, top + (20 if step else 28)
    lines = f'<text class="name" x="{center:.1f}" y="{first}">{name}</text>'
    lines += f'<text x="{center:.1f}" y="{top + 37}">{step}</text>' if step else ""
    return f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{height}" rx="4"/>{lines}'


if __name__ == "__main__":
    main()
