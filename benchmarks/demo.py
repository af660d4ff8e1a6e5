"""What `ldpruner demo` prints, as a committed result; writes the table and the picture of the README.

python -m benchmarks.demo [--run runs/demo-benchmark]
"""

import argparse
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.records import ROOT, cell, write_between
from ldpruner.cli.demo import JUDGED, OWN_SAMPLES

PICTURE = "before-after-recovered"


def main() -> None:
    """Runs the demo if its result is missing, then writes the table."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/demo-benchmark"))
    options = parser.parse_args()
    result = cell("demo", {"command": "ldpruner demo"}, lambda: _demo(options.run))["result"]
    write_between("demo table", _table(result))


def _demo(run: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "ldpruner", "demo", "--run", str(run), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    shutil.copyfile(run / "samples" / f"{PICTURE}.png", ROOT / "docs" / f"{PICTURE}.png")
    losses = {"losses": None}  # of each step: too many for a table
    return {**result, "samples": None, "history": {**result["history"], **losses}}


def _table(result: dict[str, Any]) -> str:
    original, pruned = result["pipelines"]
    ratio = result["latency_ratio"]
    rows = [
        (
            "parameters",
            *(f"{one['parameters'] / 1e6:.2f} M" for one in (original, pruned)),
            _kept("parameters", result),
        ),
        (
            "MACs of a denoiser call",
            *(f"{one['macs'] / 1e6:.1f} M" for one in (original, pruned)),
            _kept("macs", result),
        ),
        (
            "latency, median (10 to 90 %)",
            *(_spread(one["latency_ms"], " ms", 1) for one in (original, pruned)),
            _spread({name: 100 * value for name, value in ratio.items()}, " %", 1),
        ),
        (
            "peak memory",
            *(f"{one['peak_memory_bytes'] / 2**20:.1f} MiB" for one in (original, pruned)),
            _kept("peak_memory_bytes", result),
        ),
        *_quality(result),
    ]
    header = "| | original | pruned | kept |\n|---|---|---|---|\n"
    note = (
        f"\n\n{len(result['removed'])} operators removed for a budget of 50 % of the latency; one sample, 10 steps, "
        f"2 cores; then {result['history']['steps']} steps of finetuning on {OWN_SAMPLES} samples of the original: "
        f"no data. Distances and SSIM are of {JUDGED} samples on seeds that nothing was chosen by; the noise floor is "
        "the original against itself on other seeds.\n"
    )
    return header + "\n".join(f"| {' | '.join(row)} |" for row in rows) + note


def _quality(result: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """How far the pruned pipeline's samples are from the original's, before and after it recovered."""
    found = {row["metric"]: row for row in result["metrics"]}
    names = {
        "latent_score": "score of the latents, recovered",
        "frechet_distance": "Frechet distance of the latents, recovered",
        "ssim": "SSIM with the original's pictures, recovered",
    }
    before = (
        "score of the latents, before",
        "0",
        f"{result['score']:.2f}",
        f"(noise floor {result['noise_floor']:.2f})",
    )
    rows = [(label, found[name]) for name, label in names.items()]
    return [before] + [
        (label, f"{row['original']:.3g}", f"{row['pruned']:.3g}", f"(noise floor {row['noise_floor']:.3g})")
        for label, row in rows
    ]


def _kept(name: str, result: dict[str, Any]) -> str:
    original, pruned = result["pipelines"]
    return f"{pruned[name] / original[name]:.1%}"


def _spread(values: dict[str, float], unit: str, digits: int) -> str:
    low, high = f"{values['p10']:.{digits}f}", f"{values['p90']:.{digits}f}"
    return f"{values['median']:.{digits}f}{unit} ({low} to {high})"


if __name__ == "__main__":
    main()
