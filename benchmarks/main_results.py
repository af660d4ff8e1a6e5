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
    cells_of,
    distance_text,
    final_distance,
    latency_text,
    paired,
    percent_text,
    usual,
)
from benchmarks.comparison import CUTS, FEWER_STEPS, ORIGINAL, OURS
from benchmarks.records import ROOT, Record, markdown, read
from ldpruner.evaluation.sheets import sheet
from ldpruner.pruning.serialization import find_folder

MODEL = "emoji"
METHODS = (OURS, "greedy (paper)", "output loss", "BK-SDM", "random", FEWER_STEPS, ORIGINAL)
GRID = ROOT / "docs" / "figures" / "methods.png"
SIDE, SHOWN = 64, 8  # pixels of a picture, and pictures of a row
ENLARGED = 2
GRID_ROWS = {  # the cells of seed 0 at half of the latency; strips are named after cells
    "original": "original-0-0-200-before",
    "ld-pruner, pruned": "ld-pruner-0.5-0-200-before",
    "ld-pruner": "ld-pruner-0.5-0-200-after",
    "greedy (paper)": "greedy-(paper)-0.5-0-200-after",
    "output loss": "output-loss-0.5-0-200-after",
    "BK-SDM": "BK-SDM-0.5-0-200-after",
    "random": "random-0.5-0-200-after",
    "fewer steps": "fewer-steps-0.5-0-200-before",
}


def comparison() -> Iterator[str]:
    """A table for each cut."""
    cells = cells_of(MODEL)
    originals = usual(cells, MODEL, ORIGINAL, 0)
    for cut in sorted(CUTS):
        rows = {method: usual(cells, MODEL, method, cut) for method in METHODS}
        head = ["method", "seeds", "latency", "MACs", "distance, pruned", "finetuned", "against the original"]
        head += ["R@1, pruned", "finetuned", "paired distance, finetuned"]
        yield f"### {cut:.0%} of the latency removed\n"
        yield from markdown(head, [[name, *_row(rows[name], originals)] for name in METHODS if rows[name]])
        yield ""


def _row(records: Sequence[Record], originals: Sequence[Record]) -> list[str]:
    results = [record["result"] for record in records if "failure" not in record["result"]]
    if not results:
        return [str(len(records)), "cannot be reached", *[""] * 7]
    changes = [
        final_distance(own, "after") / other["before"]["frechet_distance"] - 1
        for own, other in paired(records, originals)
    ]
    macs = np.mean([result["macs"] / result["original_macs"] for result in results])
    return [
        str(len(results)),
        latency_text(results),
        f"{macs:.1%}",
        distance_text(results, "before"),
        distance_text(results, "after"),
        percent_text(changes),
        *(_share(results, when) for when in ("before", "after")),
        _paired_distance(results),
    ]


def _share(results: Sequence[Mapping[str, Any]], when: str) -> str:
    values = [result[when]["r_at_1"] for result in results if when in result]
    return f"{np.mean(values):.1%}" if values else ""


def _paired_distance(results: Sequence[Mapping[str, Any]]) -> str:
    values = [result.get("after", result["before"])["paired_distance"] for result in results]
    return f"{np.mean(values):.3f}"


def headline() -> Iterator[str]:
    """The original, ours and the original given the same finetuning, at half of the latency, on the same seeds."""
    cells = cells_of(MODEL)
    pairs = paired(usual(cells, MODEL, OURS, 0.5), usual(cells, MODEL, ORIGINAL, 0))
    ours, originals = ([pair[place] for pair in pairs] for place in (0, 1))
    changes = [final_distance(own, "after") / other["before"]["frechet_distance"] - 1 for own, other in pairs]
    rows = [
        ["original", "", "", distance_text(originals, "before"), "", _share(originals, "before")],
        [
            "original, finetuned",
            "",
            _compute(originals),
            distance_text(originals, "after"),
            _change(originals),
            _share(originals, "after"),
        ],
        ["pruned", latency_text(ours), "0%", distance_text(ours, "before"), "", _share(ours, "before")],
        [
            "pruned, finetuned",
            latency_text(ours),
            _compute(ours),
            distance_text(ours, "after"),
            percent_text(changes),
            _share(ours, "after"),
        ],
    ]
    yield from markdown(["", "latency", "compute", "Fréchet distance", "against the original", "R@1"], rows)


def _change(originals: Sequence[Mapping[str, Any]]) -> str:
    return percent_text([final_distance(one, "after") / one["before"]["frechet_distance"] - 1 for one in originals])


def _compute(results: Sequence[Mapping[str, Any]]) -> str:
    return f"{np.mean([result['compute'] for result in results]):.2%}"


def readme() -> Iterator[str]:
    """Cost by the demo, quality by the comparison at half of the latency."""
    (demo,) = (record["result"] for record in read("demo"))
    pair = demo["pipelines"]
    pairs = paired(usual(cells_of(MODEL), MODEL, OURS, 0.5), usual(cells_of(MODEL), MODEL, ORIGINAL, 0))
    ours, originals = ([part[place] for part in pairs] for place in (0, 1))
    costs = [
        ["parameters of the denoiser", *(f"{cost['parameters'] / 1e6:.1f} M" for cost in pair)],
        ["latency of one picture", *(f"{cost['latency_ms']['median']:.0f} ms" for cost in pair)],
        ["peak memory", *(f"{cost['peak_memory_bytes'] / 2**20:.0f} MiB" for cost in pair)],
    ]
    rows = [[name, original, pruned, pruned] for name, original, pruned in costs]
    distances = [distance_text(results, when) for results, when in _columns(originals, ours)]
    shares = [_share(results, when) for results, when in _columns(originals, ours)]
    rows += [["Fréchet distance to test pictures", *distances], ["captions retrieved (R@1)", *shares]]
    yield from markdown(["", "original", "pruned", "finetuned"], rows)


def _columns(originals: Sequence[Any], ours: Sequence[Any]) -> tuple[tuple[Sequence[Any], str], ...]:
    return (originals, "before"), (ours, "before"), (ours, "after")


def draw_grid(folder: Path) -> None:
    """The pictures of each method, of the same captions and seeds."""
    rows = {label: folder / f"{name}.png" for label, name in GRID_ROWS.items() if (folder / f"{name}.png").exists()}
    strips = [np.asarray(Image.open(path).convert("RGB"))[:, : SHOWN * SIDE] for path in rows.values()]
    pictures = np.stack([np.stack(np.split(strip, SHOWN, axis=1)) for strip in strips])[:, :, None]
    large = pictures.repeat(ENLARGED, axis=-3).repeat(ENLARGED, axis=-2)
    captions = (find_folder(f"zoo:{MODEL}") / "prompts.txt").read_text().splitlines()[:SHOWN]
    frames = sheet(large, list(rows), captions)
    Image.fromarray(frames[0]).save(GRID, optimize=True)


def main() -> None:
    """Draws the grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/baselines"), help="of benchmarks.baselines")
    draw_grid(parser.parse_args().runs / MODEL / "strips")


if __name__ == "__main__":
    main()
