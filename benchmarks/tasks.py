"""Text to image and unconditional audio, end to end: `ldpruner run` on models of the zoo.

    python -m benchmarks.tasks [--models emoji] [--runs runs/tasks]

At least 35 % of the latency is removed, the most that the paper reports for Stable Diffusion v1.4.
"""

import argparse
import functools
import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import ROOT, cell, markdown, read

BUDGET = "latency=0.65"
TASKS = {
    "emoji": (
        "text to image",
        ("--samples", "16", "--steps", "10", "--prompts", "src/ldpruner/zoo/emoji/prompts.txt", "--guidance", "4"),
    ),
    "digits": ("unconditional audio", ("--samples", "8", "--steps", "25")),  # decoding takes as long as ten steps
}


def main() -> None:
    """Runs every task that is missing."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=TASKS, default=tuple(TASKS))
    parser.add_argument("--runs", type=Path, default=Path("runs/tasks"))
    options = parser.parse_args()
    for name in options.models:
        words = ("run", f"zoo:{name}", "--budget", BUDGET, *TASKS[name][1])
        measure = functools.partial(_run, words, options.runs / name)
        cell("tasks", {"model": name, "command": words}, measure)


def _run(words: Sequence[str], run: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "ldpruner", *words, "--run", str(run), "--json"]
    finished = subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, check=True)
    result: dict[str, Any] = json.loads(finished.stdout)
    return {name: value for name, value in result.items() if name != "samples"}


def table() -> Iterator[str]:
    """A row for each task."""
    head = ["model", "task", "steps", "removed", "parameters", "MACs", "latency ratio", "latent shift", "reload"]
    yield from markdown(head, map(_row, read("tasks")))


def _row(record: dict[str, Any]) -> list[str]:
    settings, result = record["settings"], record["result"]
    command = settings["command"]
    original, pruned = result["pipelines"]
    ratio = result["latency_ratio"]
    return [
        f"`zoo:{settings['model']}`",
        TASKS[command[1].removeprefix("zoo:")][0],  # as named then
        command[command.index("--steps") + 1],
        str(len(result["removed"])),
        f"{pruned['parameters'] / original['parameters']:.1%}",
        f"{pruned['macs'] / original['macs']:.1%}",
        f"{ratio['median']:.1%} ({ratio['p10']:.1%} to {ratio['p90']:.1%})",
        f"{result['latent_shift']:.2g} (noise floor {result['noise_floor']:.2g})",
        "bit-identical" if result["reload_is_exact"] else "different",
    ]


if __name__ == "__main__":
    main()
