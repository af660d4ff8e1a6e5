"""How scoring grows: with samples, operators and steps; with workers; what the driver and its store take.

    python -m benchmarks.scaling [--cells linear driver choice workers ray store compile] [--elements 65536]

On zoo:satellite, one thread. `workers` is a simulation with the task times that `driver` measures; `choice` is of the
operators of Stable Diffusion XL, with made-up scores.
"""

import argparse
import functools
import heapq
import itertools
import logging
import os
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ldpruner
from benchmarks.records import ROOT, cell
from ldpruner.operators.discovery import Operator, denoiser_macs, operators_of
from ldpruner.operators.patching import modified
from ldpruner.pipelines.denoiser import Denoiser, find_denoiser
from ldpruner.pipelines.fingerprints import architecture, count_parameters
from ldpruner.pipelines.running import force_eager
from ldpruner.profiling.benchmark import Percentiles
from ldpruner.profiling.costs import Costs
from ldpruner.pruning.serialization import load, load_meta
from ldpruner.scoring.estimates import CURVES, Curve
from ldpruner.scoring.importance import Floats, Moments
from ldpruner.scoring.results import Savings, Score, Scores
from ldpruner.scoring.runner import ScoringRun
from ldpruner.scoring.store import RunStore
from ldpruner.scoring.worker import Executor, LocalExecutor, Outcome, Task

MODEL = "zoo:satellite"
SHORT = {"samples": (16, 32, 48), "operators": (4, 8, 16), "steps": (2, 4, 8)}
LARGE = ROOT / "tests" / "architectures" / "stable-diffusion-xl-base-1.0"
KEPT = (0.65, 0.5, 0.35)
MODIFICATIONS, SAMPLES, GROUPS = 1300, 64, 4  # of Stable Diffusion XL, 16 samples at once
WORKERS = 256
ROUNDS = 3


def main() -> None:
    """Measures what is missing."""
    os.environ.update({"RAY_worker_niceness": "0"})  # its workers do not stand back for other work on the machine
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    measures = (_linear, _driver, _choice, _workers, _ray, _store, _compile)
    cells = {one.__name__.removeprefix("_"): one for one in measures}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", nargs="+", choices=cells, default=tuple(cells))
    parser.add_argument("--elements", type=int, default=4 * 128 * 128, help="of one sample's latents in the store")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.cells:
        cells[name](options)


def _linear(_: argparse.Namespace) -> dict[str, Any]:
    """Seconds over samples x operators x steps, for small and large of each."""
    settings = {"cell": "linear", **SHORT}

    def measured() -> dict[str, Any]:
        found = [
            {"samples": samples, "operators": operators, "steps": steps, "seconds": seconds}
            for samples, operators, steps in itertools.product(*SHORT.values())
            for seconds in [_scored(_every(operators), samples, steps)[0]]
        ]
        work = np.array([(1 + one["operators"]) * one["samples"] * one["steps"] for one in found])
        seconds = np.array([one["seconds"] for one in found])
        slope = float((work @ seconds) / (work @ work))
        left = np.square(seconds - slope * work).sum() / np.square(seconds - seconds.mean()).sum()
        return {"cases": found, "seconds_each": slope, "explained": 1 - float(left)}

    return cell("scaling", settings, measured)


def _driver(_: argparse.Namespace) -> dict[str, Any]:
    """What is neither drawing nor waiting for it, of a run on all operators."""

    def measured() -> dict[str, Any]:
        executor = _Timed(load(MODEL))
        seconds, samplings = _scored(_every(None), samples=16, steps=10, executor=executor)
        own = seconds - sum(executor.seconds)
        return {
            "samplings": samplings,
            "seconds": seconds,
            "own_share": own / seconds,
            "own_seconds_each": own / samplings,
            "task_seconds": [round(one, 4) for one in executor.seconds],
        }

    return cell("scaling", {"cell": "driver", "samples": 16, "steps": 10}, measured)


def _choice(_: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one round of adaptive scoring, for one budget, to compare two plans."""
    settings = {"cell": "contested", "pipeline": LARGE.name, "kept": list(KEPT), "seed": 0}

    def measured() -> dict[str, Any]:
        denoiser = find_denoiser(load_meta(LARGE))
        scores = _made_up(denoiser, seed=0)
        return {"modifications": len(scores.scores), "seconds": [_chosen(scores, kept) for kept in KEPT]}

    return cell("scaling", settings, measured)


def _made_up(denoiser: Denoiser, seed: int) -> Scores:
    """Scores that go with the root of what a removal saves, and scatter by a factor of e."""
    candidates = [candidate for operator in operators_of(denoiser) for candidate in operator.candidates]
    macs, parameters = denoiser_macs(denoiser), count_parameters(denoiser.module)
    scatter = np.exp(np.random.default_rng(seed).normal(size=len(candidates)))
    return Scores(
        component=denoiser.component,
        architecture=architecture(denoiser.module),
        probe=ldpruner.Probe(),
        metric="mean_std",
        costs=Costs(parameters=parameters, macs=macs, latency_ms=1, denoiser_ms=1, memory=1),
        denoiser_calls=0,
        scores=tuple(
            Score(
                operator=one.operator,
                module_type="",
                modification=one.modification,
                score=float((one.macs / macs + 1e-5) ** 0.5 * factor),
                samples=1,
                savings=Savings(parameters=one.parameters, macs=one.macs, latency_ms=one.macs / macs, memory=0),
                candidate=one,
            )
            for one, factor in zip(candidates, scatter, strict=True)
        ),
    )


def _chosen(scores: Scores, kept: float) -> float:
    knapsack = scores.knapsack(scores.scores, ldpruner.Budget(macs=kept))
    costs = scores.removal_costs(scores.scores)
    started = time.perf_counter()
    plan = knapsack.solve(costs, relaxed=True)
    assert plan is not None
    knapsack.solve(costs * np.exp(2 * plan - 1), relaxed=True)
    return time.perf_counter() - started


def _workers(options: argparse.Namespace) -> dict[str, Any]:
    """How busy many workers are, when one driver records what they draw one after the other."""
    known = _driver(options)["result"]

    def measured() -> dict[str, Any]:
        samplings = np.random.default_rng(0).choice(known["task_seconds"], MODIFICATIONS * GROUPS)
        return {"busy": _busy(samplings, WORKERS, known["own_seconds_each"]), "tasks": len(samplings)}

    settings = {"cell": "workers", "workers": WORKERS, "modifications": MODIFICATIONS, "groups": GROUPS}
    return cell("scaling", settings, measured)


def _busy(samplings: Floats, workers: int, own: float) -> float:
    """The share of the time until the end that workers draw. The driver gives out all it can before each record."""
    left, running, done, clock = deque(map(float, samplings)), list[float](), 0, 0.0
    while left or running or done:
        while running and running[0] <= clock:
            heapq.heappop(running)
            done += 1
        while left and len(running) < workers:
            heapq.heappush(running, clock + left.popleft())
        if done:
            done, clock = done - 1, clock + own
        else:
            clock = running[0]
    return float(samplings.sum()) / (workers * clock)


def _ray(_: argparse.Namespace) -> dict[str, Any]:
    """Two workers over one, in turn; each with one thread."""

    def measured() -> dict[str, Any]:
        import ray

        from ldpruner.scoring.ray import RayExecutor

        pairs = []
        for _ in range(ROUNDS):
            pair = []
            for workers in (1, 2):
                ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
                with RayExecutor(functools.partial(load, MODEL)) as executor:
                    _scored(_every(2), samples=4, steps=1, executor=executor)  # all workers have opened the pipeline
                    pair.append(_scored(_every(40), samples=16, steps=10, executor=executor)[0])
                ray.shutdown()
            pairs.append(pair)
        return {"seconds_ratio": Percentiles.of([two / one for one, two in pairs]).model_dump(), "seconds": pairs}

    return cell("scaling", {"cell": "ray", "operators": 40, "samples": 16, "steps": 10}, measured)


def _store(options: argparse.Namespace) -> dict[str, Any]:
    """A run store of the size of Stable Diffusion XL: its bytes, and the time to open it and see what is finished."""

    def measured() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            random = np.random.default_rng(0)
            mean, m2, errors = (random.normal(size=size) for size in (options.elements, options.elements, SAMPLES))
            scores = {metric: {1 << place: 1.0 for place in range(7)} for metric in CURVES}
            started = time.perf_counter()
            with RunStore(folder, {}) as store:
                for place in range(MODIFICATIONS):
                    key, curve = (f"operator {place}", "identity"), Curve(errors**2, scores, 25 * SAMPLES)
                    store.record(key, curve, Moments(mean, m2, errors**2))
            written = time.perf_counter() - started
            started = time.perf_counter()
            with RunStore(folder) as store:
                curves, calls = store.curves(), store.denoiser_calls()
            opened = time.perf_counter() - started
            size = sum(path.stat().st_size for path in Path(folder).iterdir())
        assert calls == len(curves) * SAMPLES * 25
        return {
            "modifications": len(curves),
            "bytes_over_moments": size / (len(curves) * 2 * 4 * options.elements),
            "bytes": size,
            "seconds_to_write": written,
            "seconds_to_open": opened,
        }

    return cell("scaling", {"cell": "store", "elements": options.elements}, measured)


def _compile(_: argparse.Namespace) -> dict[str, Any]:
    """Denoiser calls compiled over plain, in turn; the seconds to compile it, and to compile it anew for an operator.

    Calls by the processor time of one thread, as the machine is shared.
    """
    settings = {"cell": "compile", "samples": 16, "pairs": 5 * ROUNDS}

    def measured() -> dict[str, Any]:
        torch.compiler.config.force_disable_caches = True
        denoiser = find_denoiser(load(MODEL))
        network, (latents, *others) = denoiser.module, denoiser.arguments
        samples = torch.randn(16, *latents.shape[1:], generator=torch.Generator().manual_seed(0))

        @torch.no_grad()
        def seconds() -> float:
            started = time.process_time()
            network(samples, *others, **denoiser.options)
            return time.process_time() - started

        def plain() -> float:
            with force_eager():
                return seconds()

        started = time.perf_counter()
        network.compile(dynamic=False)
        seconds()
        first = time.perf_counter() - started
        pairs = [(plain(), seconds()) for _ in range(5 * ROUNDS)]
        (operator,) = _every(1)
        started = time.perf_counter()
        with modified(network, [operator.candidates[0].removal]):
            seconds()
        return {
            "seconds_ratio": Percentiles.of([compiled / plain for plain, compiled in pairs]).model_dump(),
            "seconds_plain": Percentiles.of([plain for plain, _ in pairs]).model_dump(),
            "seconds_to_compile": first,
            "seconds_to_compile_again": time.perf_counter() - started,
        }

    return cell("scaling", settings, measured)


class _Timed(LocalExecutor):
    """Keeps the time of each task."""

    seconds: list[float]

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Outcome]]:
        self.seconds = []
        for task in tasks:
            started = time.perf_counter()
            found = next(super().run([task]))
            self.seconds.append(time.perf_counter() - started)
            yield found


def _every(number: int | None) -> Sequence[Operator]:
    """So many operators, spread over all; each with its first modification."""
    found = ldpruner.find_operators(load(MODEL))
    chosen = (
        found if number is None else [found[place] for place in np.linspace(0, len(found) - 1, number).astype(int)]
    )
    return [one.model_copy(update={"candidates": one.candidates[:1]}) for one in chosen]


def _scored(
    operators: Sequence[Operator], samples: int, steps: int, executor: Executor | None = None
) -> tuple[float, int]:
    """Seconds of drawing all, and how many draws that were."""
    probe = ldpruner.Probe(samples=samples, steps=steps)
    with (
        tempfile.TemporaryDirectory() as run,
        ScoringRun(load(MODEL), operators, probe, run=run, executor=executor) as scoring,
    ):
        started = time.perf_counter()
        samplings = sum(1 for _ in scoring)
        return time.perf_counter() - started, samplings


if __name__ == "__main__":
    main()
