"""What can be removed from published pipelines of real size, read from their configuration files alone.

    OMP_NUM_THREADS=1 python -m benchmarks.coverage [--only NAME ...]

Needs no weights and no accelerator.
"""

import argparse
import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.records import ROOT, Record, cell, markdown, read
from ldpruner.knapsack import Knapsack
from ldpruner.operators.discovery import Candidate, Operator, denoiser_macs, operators_of
from ldpruner.operators.tracing import trace
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pruning.serialization import load_meta

FOLDERS = ROOT / "tests" / "architectures"
IMAGE_SIZE = (512, 512)  # for the pipelines that need one
REPEATS = 2  # the first discovery also imports the classes of the pipeline


def main() -> None:
    """Measures every cell that is missing."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", help="names of folders")
    options = parser.parse_args()
    for name in options.only or sorted(folder.name for folder in FOLDERS.iterdir()):
        settings = {"pipeline": name, "image_size": IMAGE_SIZE, "repeats": REPEATS}
        cell("coverage", settings, functools.partial(_measure, FOLDERS / name))


def _measure(folder: Path) -> dict[str, Any]:
    discoveries = [_timed(lambda: _discover(folder)) for _ in range(REPEATS)]
    result, _ = discoveries[0]
    return {**result, "seconds": round(min(seconds for _, seconds in discoveries), 2)}


def _timed(action: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], float]:
    """The result of an action and its processor time, which other work on the machine hardly changes."""
    start = time.process_time()
    result = action()
    return result, time.process_time() - start


def _discover(folder: Path) -> dict[str, Any]:
    pipeline = load_meta(folder)
    denoiser = find_denoiser(pipeline, call={"image": Image.new("RGB", IMAGE_SIZE)})
    flow = trace(denoiser)
    operators = operators_of(denoiser, flow)
    parameters, macs = count_parameters(denoiser.module), denoiser_macs(denoiser, flow)
    candidates = [candidate for operator in operators for candidate in operator.candidates]
    return {
        "denoiser": type(denoiser.module).__name__,
        "parameters": parameters,
        "macs": macs,
        "operators": len(operators),
        "modifications": _modifications(operators),
        "removable_parameters": most_removable(candidates, [candidate.parameters for candidate in candidates])
        / parameters,
        "removable_macs": most_removable(candidates, [candidate.macs for candidate in candidates]) / macs,
    }


def _modifications(operators: Sequence[Operator]) -> dict[str, int]:
    """How many modifications of each kind there are, most frequent first: {'zero attention': 32}."""
    counts = Counter(f"{name} {operator.module_type}" for operator in operators for name in operator.modifications)
    return dict(counts.most_common())


def most_removable(candidates: Sequence[Candidate], weights: Sequence[int]) -> float:
    """The largest sum of weights of candidates that share no leaf module, which selection excludes."""
    scale = float(max(weights))
    knapsack = Knapsack(np.array([weights]) / scale, np.zeros(1), [candidate.leaves for candidate in candidates])
    return knapsack.most_saved()[0] * scale


def table() -> Iterator[str]:
    """A row for each pipeline, smallest first."""
    head = ["pipeline", "denoiser", "parameters", "GMACs", "operators", "modifications"]
    yield from markdown([*head, "parameters removable", "MACs removable", "seconds"], _rows())


def _rows() -> Iterator[list[str]]:
    for record in sorted(read("coverage"), key=lambda record: (record["result"]["parameters"], _name(record))):
        result = record["result"]
        yield [
            _name(record),
            result["denoiser"],
            f"{result['parameters'] / 1e6:,.0f} M",
            f"{result['macs'] / 1e9:,.0f}",
            str(result["operators"]),
            ", ".join(f"{count} {name}" for name, count in result["modifications"].items()),
            f"{result['removable_parameters']:.1%}",
            f"{result['removable_macs']:.1%}",
            f"{result['seconds']:.1f}",
        ]


def _name(record: Record) -> str:
    return str(record["settings"]["pipeline"])


if __name__ == "__main__":
    main()
