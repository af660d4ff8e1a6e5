"""The three tasks, end to end: `ldpruner run` on each model of the zoo; writes a table into the README.

    python -m benchmarks.tasks [--models emoji] [--runs runs/tasks]

At least 35 % of the latency is to go, the most that the paper reports for Stable Diffusion v1.4.
"""

import argparse
import functools
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import ROOT, cell, write_between

BUDGET = 0.65
TASKS = {
    "satellite": ("unconditional image", 16, 10, ()),
    "emoji": ("text to image", 16, 10, ("--prompts", "zoo/emoji/prompts.txt", "--guidance", "4")),
    "digits": ("unconditional audio", 8, 25, ()),  # making the sound takes as long as ten steps
}


def main() -> None:
    """Runs what is missing, then writes the table."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=TASKS, default=tuple(TASKS))
    parser.add_argument("--runs", type=Path, default=Path("runs/tasks"))
    options = parser.parse_args()
    rows = [_row(name, options.runs / name) for name in options.models]
    header = "| model | task | steps | removed | parameters kept | MACs kept | latency kept | moved by | reload |\n"
    note = (
        f"\n\n`ldpruner run zoo:NAME --budget latency={BUDGET}` on 2 CPU cores: whole calls of one sample, decoding "
        "included, in turn with the original (median of 15 pairs, 10 to 90 %). *Moved by* is the score of the whole "
        "plan on other seeds, beside that of two draws of the original itself.\n"
    )
    write_between("tasks table", header + "|---" * 9 + "|\n" + "\n".join(rows) + note)


def _row(name: str, run: Path) -> str:
    task, samples, steps, further = TASKS[name]
    probe = ("--samples", str(samples), "--steps", str(steps), *further)
    words = ["run", f"zoo:{name}", "--budget", f"latency={BUDGET}", *probe]
    result = cell(f"tasks/{name}", {"command": words}, functools.partial(_run, words, run))["result"]
    original, pruned = result["pipelines"]
    ratio = result["latency_ratio"]
    columns = [
        f"`zoo:{name}`",
        task,
        str(steps),
        str(len(result["removed"])),
        f"{pruned['parameters'] / original['parameters']:.1%}",
        f"{pruned['macs'] / original['macs']:.1%}",
        f"{ratio['median']:.1%} ({ratio['p10']:.1%} to {ratio['p90']:.1%})",
        f"{result['score']:.2g} (floor {result['noise_floor']:.2g})",
        "equal to the bit" if result["reload_is_exact"] else "not equal",
    ]
    return "| " + " | ".join(columns) + " |"


def _run(words: Sequence[str], run: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "ldpruner", *words, "--run", str(run), "--json"]
    finished = subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, check=True)
    result: dict[str, Any] = json.loads(finished.stdout)
    return {name: value for name, value in result.items() if name != "samples"}


if __name__ == "__main__":
    main()
