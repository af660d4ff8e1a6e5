"""The tables of the results page and of the README, and the grid of pictures, all of zoo:emoji.

    python -m benchmarks.main_results --runs FOLDER

draws the grid from the pictures that `benchmarks.baselines --runs FOLDER` has kept.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.cells import (
    Result,
    cells_of,
    distance_text,
    final_distance,
    half_interval,
    paired,
    percent_text,
    usual,
)
from benchmarks.comparison import CUTS, FEWER_STEPS, ORIGINAL, OURS, TRAIN_STEPS
from benchmarks.records import ROOT, Record, markdown
from ldpruner.evaluation.sheets import sheet
from ldpruner.pruning.serialization import find_folder

MODEL = "emoji"
METHODS = (OURS, "greedy (paper)", "output loss", "BK-SDM", "random", FEWER_STEPS, ORIGINAL)
GRID = ROOT / "docs" / "methods.png"
LONG_STEPS = 2000
SIDE, SHOWN = 64, 8  # pixels of a picture, and pictures of a row
ENLARGED = 2
COLOURS = 128  # for a small file
GRID_ROWS = {  # the cells of seed 0 at half of the latency; strips are named after cells
    "original": "original-0-0-200-before",
    "ld-pruner, pruned": "ld-pruner-0.5-0-200-before",
    "ld-pruner, 200 steps": "ld-pruner-0.5-0-200-after",
    "ld-pruner, 2000 steps": "ld-pruner-0.5-0-2000-after",
    "greedy (paper)": "greedy-(paper)-0.5-0-200-after",
    "output loss": "output-loss-0.5-0-200-after",
    "BK-SDM": "BK-SDM-0.5-0-200-after",
    "random": "random-0.5-0-200-after",
    "fewer steps": "fewer-steps-0.5-0-200-before",
}


def comparison() -> Iterator[str]:
    """A table for each cut."""
    cells = cells_of(MODEL)
    for cut in sorted(CUTS):
        rows = {method: usual(cells, MODEL, method, cut) for method in METHODS}
        head = ["method", "seeds", "latency", "MACs of a call", "distance, pruned", "finetuned"]
        head += ["R@1, pruned", "finetuned", "points above ld-pruner", "paired distance"]
        yield f"### {cut:.0%} of the latency removed\n"
        yield from markdown(head, [[name, *_row(rows[name], rows[OURS])] for name in METHODS if rows[name]])
        yield ""


def _row(records: Sequence[Record], ours: Sequence[Record]) -> list[str]:
    results = [record["result"] for record in records if "failure" not in record["result"]]
    if not results:
        return [str(len(records)), "cannot be reached", *[""] * 7]
    macs = np.mean([result["macs"] / result["original_macs"] for result in results])
    return [
        str(len(results)),
        _latency(results),
        f"{macs:.1%}",
        distance_text(results, "before"),
        distance_text(results, "after"),
        *(_share(results, when) for when in ("before", "after")),
        _difference(records, ours),
        _paired_distance(results),
    ]


def _change(records: Sequence[Record], originals: Sequence[Record], when: str) -> str:
    """The relative change of the distance against the original before finetuning, on the same seeds."""
    pairs = paired(records, originals)
    changes = [final_distance(own, when) / final_distance(other, "before") - 1 for own, other in pairs]
    return percent_text(changes) if any(changes) else ""


def _latency(results: Sequence[Result]) -> str:
    return _mean([result["latency_ratio"]["median"] for result in results])


def _share(results: Sequence[Result], when: str) -> str:
    values = [result[when]["r_at_1"] for result in results if when in result]
    return _mean(values) if values else ""


def _mean(values: Sequence[float]) -> str:
    """The mean over seeds, and half of its 95 % interval."""
    half = f" ± {half_interval(values):.1%}" if len(values) > 1 else ""
    return f"{np.mean(values):.1%}{half}"


def _difference(records: Sequence[Record], ours: Sequence[Record]) -> str:
    """How many points the last R@1 is above ours, on the same seeds."""
    if records is ours:
        return ""
    points = [100 * (_last(other)["r_at_1"] - _last(own)["r_at_1"]) for other, own in paired(records, ours)]
    half = f" ± {half_interval(points):.1f}" if len(points) > 1 else ""
    return f"{np.mean(points):+.1f}{half}" if points else ""


def _last(result: Result) -> Mapping[str, Any]:
    """The quality after finetuning; without finetuning the one before."""
    quality: Mapping[str, Any] = result.get("after", result["before"])
    return quality


def _paired_distance(results: Sequence[Result]) -> str:
    values = [_last(result)["paired_distance"] for result in results]
    return f"{np.mean(values):.3f}"


def headline() -> Iterator[str]:
    """The original and ours at half of the latency, without finetuning and after it, on the same seeds."""
    head = ["zoo:emoji", "seeds", "latency", "compute", "Fréchet distance", "against the original", "R@1"]
    yield from markdown(head, [[name, *_quality(*shown)] for name, shown in _shown().items()])


def readme() -> Iterator[str]:
    """The same in few words."""
    rows = {name: _quality(*shown) for name, shown in _shown().items() if name != "original, finetuned"}
    short = [
        [name, latency.split()[0], distance.replace(" ", ""), share.split()[0]]
        for name, (_, latency, _, distance, _, share) in rows.items()
    ]
    yield from markdown(["", "latency", "Fréchet distance", "R@1"], short)


def _shown() -> dict[str, tuple[list[Record], str, list[Record]]]:
    """By name the records of a row, whether they are before or after finetuning, and those of the original."""
    cells = cells_of(MODEL)
    originals, ours = usual(cells, MODEL, ORIGINAL, 0), usual(cells, MODEL, OURS, 0.5)
    return {
        "original": (originals, "before", originals),
        "original, finetuned": (originals, "after", originals),
        "pruned": (ours, "before", originals),
        f"{TRAIN_STEPS[MODEL]} steps later": (ours, "after", originals),
        f"{LONG_STEPS} steps later": (cells.get((OURS, 0.5, LONG_STEPS, 0), []), "after", originals),
    }


def _quality(records: Sequence[Record], when: str, originals: Sequence[Record]) -> list[str]:
    results = [record["result"] for record in records]
    compute = f"{np.mean([result['compute'] for result in results]):.2%}" if when == "after" else ""
    quality = [distance_text(results, when), _change(records, originals, when), _share(results, when)]
    return [str(len(results)), _latency(results), compute, *quality]


def draw_grid(folder: Path) -> None:
    """The pictures of each method, of the same captions and seeds."""
    rows = {label: folder / f"{name}.png" for label, name in GRID_ROWS.items() if (folder / f"{name}.png").exists()}
    strips = [np.asarray(Image.open(path).convert("RGB"))[:, : SHOWN * SIDE] for path in rows.values()]
    pictures = np.stack([np.stack(np.split(strip, SHOWN, axis=1)) for strip in strips])[:, :, None]
    large = pictures.repeat(ENLARGED, axis=-3).repeat(ENLARGED, axis=-2)
    captions = (find_folder(f"zoo:{MODEL}") / "prompts.txt").read_text().splitlines()[:SHOWN]
    frames = sheet(large, list(rows), captions)
    Image.fromarray(frames[0]).quantize(COLOURS).save(GRID, optimize=True)


def main() -> None:
    """Draws the grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/baselines"), help="of benchmarks.baselines")
    draw_grid(parser.parse_args().runs / MODEL / "strips")


if __name__ == "__main__":
    main()
