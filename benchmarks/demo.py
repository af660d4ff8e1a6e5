"""The result of `ldpruner demo`, and the picture of the README.

python -m benchmarks.demo [--run runs/demo-benchmark]
"""

import argparse
import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.records import ROOT, cell, markdown, read

PICTURE, COLOURS = "before-after-recovered.png", 200  # as many colours as make a small file


def main() -> None:
    """Runs the demo if its result is missing."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/demo-benchmark"))
    options = parser.parse_args()
    cell("demo", {"command": "ldpruner demo"}, lambda: _demo(options.run))


def _demo(run: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "ldpruner", "demo", "--run", str(run), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    Image.open(run / "samples" / "sheet.png").quantize(COLOURS).save(ROOT / "docs" / PICTURE, optimize=True)
    del result["samples"]
    return {**result, "history": {**result["history"], "losses": None}}  # the loss of each step is too long


def table() -> Iterator[str]:
    """Cost and quality of the original and the pruned pipeline, before and after recovery."""
    (record,) = read("demo")
    result = record["result"]
    shift = ["latent shift, pruned", "", f"{result['latent_shift']:.2f}", f"noise floor {result['noise_floor']:.2f}"]
    yield from markdown(["", "original", "pruned", "ratio"], [*_costs(result), shift, *_quality(result)])


def readme() -> Iterator[str]:
    """Cost of the original and the pruned pipeline, in few words."""
    (record,) = read("demo")
    result = record["result"]
    pair = result["pipelines"]
    rows = [
        ["parameters", *(f"{part['parameters'] / 1e6:.1f}M" for part in pair), _ratio("parameters", result)],
        [
            "latency",
            *(f"{part['latency_ms']['median']:.0f}ms" for part in pair),
            f"{result['latency_ratio']['median']:.1%}",
        ],
        [
            "memory",
            *(f"{part['peak_memory_bytes'] / 2**20:.0f}MiB" for part in pair),
            _ratio("peak_memory_bytes", result),
        ],
    ]
    yield from markdown(["", "original", "pruned", "ratio"], rows)


def _costs(result: Mapping[str, Any]) -> list[list[str]]:
    pair, ratio = result["pipelines"], result["latency_ratio"]
    return [
        ["parameters", *(f"{part['parameters'] / 1e6:.2f} M" for part in pair), _ratio("parameters", result)],
        ["MACs of a denoiser call", *(f"{part['macs'] / 1e6:.1f} M" for part in pair), _ratio("macs", result)],
        [
            "latency, median (10 to 90 %)",
            *(_percentiles(part["latency_ms"], " ms") for part in pair),
            _percentiles({name: 100 * value for name, value in ratio.items()}, " %"),
        ],
        [
            "peak memory",
            *(f"{part['peak_memory_bytes'] / 2**20:.1f} MiB" for part in pair),
            _ratio("peak_memory_bytes", result),
        ],
    ]


def _quality(result: Mapping[str, Any]) -> Iterator[list[str]]:
    """How far the recovered pipeline's samples are from the original's."""
    measures = {row["metric"]: row for row in result["metrics"]}
    labels = {
        "latent_shift": "latent shift, recovered",
        "frechet_distance": "Fréchet distance of the latents, recovered",
        "ssim": "SSIM with the original's pictures, recovered",
    }
    for name, label in labels.items():
        row = measures[name]
        original = "" if row["original"] is None else f"{row['original']:.3g}"
        yield [label, original, f"{row['pruned']:.3g}", f"noise floor {row['noise_floor']:.3g}"]


def _ratio(name: str, result: Mapping[str, Any]) -> str:
    original, pruned = result["pipelines"]
    return f"{pruned[name] / original[name]:.1%}"


def _percentiles(values: Mapping[str, float], unit: str) -> str:
    return f"{values['median']:.1f}{unit} ({values['p10']:.1f} to {values['p90']:.1f})"


if __name__ == "__main__":
    main()
