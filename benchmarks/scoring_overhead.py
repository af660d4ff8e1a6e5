"""What scoring costs beyond its denoiser calls: wall time and peak memory.

    python -m benchmarks.scoring_overhead [--rounds 3] [--samples 16] [--steps 10]

The same calls of the same modified denoiser, in batches of the same size, are made in a bare loop and by
`score_operators`, in turn, in one process. Peak memory is that of a process that only samples, and of one that scores.
"""

import argparse
import json
import logging
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

import ldpruner
from benchmarks.records import cell
from ldpruner.operators.patching import modified
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.sampling import BATCH_SIZE

MODEL = "zoo:satellite"


def main() -> None:
    """Measures, and prints the result."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--peak-of", choices=["sampling", "scoring"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    probe = ldpruner.Probe(samples=options.samples, steps=options.steps)
    if options.peak_of:
        sys.stdout.write(json.dumps(_peak(options.peak_of, probe)))
        return
    settings = {"cell": "time", "model": MODEL, "rounds": options.rounds, "probe": probe.model_dump(exclude_none=True)}
    time_result = cell("scoring_overhead", settings, lambda: _times(probe, options.rounds))
    memory_result = cell("scoring_overhead", {**settings, "cell": "memory"}, lambda: _peaks(options))
    sys.stdout.write(json.dumps({**time_result["result"], **memory_result["result"]}, indent=2) + "\n")


def _times(probe: ldpruner.Probe, rounds: int) -> dict[str, Any]:
    pipeline = ldpruner.load(MODEL)
    pairs = []
    for _ in range(rounds):
        start = time.perf_counter()
        scores = ldpruner.score_operators(pipeline, None, probe, budgets=None)
        middle = time.perf_counter()
        _bare_loop(pipeline, probe)
        pairs.append((middle - start, time.perf_counter() - middle))
    ratios = [scoring / bare for scoring, bare in pairs]
    return {
        "denoiser_calls": scores.denoiser_calls,
        "scoring_s": [scoring for scoring, _ in pairs],
        "bare_loop_s": [bare for _, bare in pairs],
        "ratio": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
    }


def _bare_loop(pipeline: Any, probe: ldpruner.Probe) -> None:
    """The denoiser calls of an exhaustive scoring run, and nothing else."""
    samples = list(range(probe.samples))
    batches = [samples[first : first + BATCH_SIZE] for first in range(0, len(samples), BATCH_SIZE)]
    denoisers = [find_denoiser(pipeline, None, probe.arguments(pipeline, batch)) for batch in batches]
    candidates = [one for operator in ldpruner.find_operators(pipeline) for one in operator.candidates]
    for removals in [[], *([one.removal] for one in candidates)]:
        with torch.no_grad(), modified(pipeline.unet, removals):
            for denoiser in denoisers:
                for _ in range(probe.steps):
                    denoiser()


def _peaks(options: argparse.Namespace) -> dict[str, Any]:
    peaks = {}
    for what in ("sampling", "scoring"):
        command = [sys.executable, "-m", "benchmarks.scoring_overhead", "--peak-of", what]
        command += ["--samples", str(options.samples), "--steps", "2"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[what] = json.loads(done.stdout)["peak_rss_bytes"]
    return {"peak_rss_bytes": peaks, "memory_ratio": peaks["scoring"] / peaks["sampling"]}


def _peak(what: str, probe: ldpruner.Probe) -> dict[str, int]:
    pipeline = ldpruner.load(MODEL)
    if what == "scoring":
        ldpruner.score_operators(pipeline, None, probe, budgets=None)
    else:
        pipeline(**probe.arguments(pipeline, range(min(BATCH_SIZE, probe.samples))))
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


if __name__ == "__main__":
    main()
