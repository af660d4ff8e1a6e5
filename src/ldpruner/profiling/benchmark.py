"""Pipelines beside each other: what each costs, timed in turn, and how far their latents are apart."""

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from diffusers import DiffusionPipeline

from ldpruner.errors import EvaluationError
from ldpruner.operators.discovery import denoiser_macs
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pipelines.offload import module_device
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.sampling import run_probe
from ldpruner.profiling.costs import elapsed_ms, peak_memory
from ldpruner.profiling.machine import Machine, machine_of
from ldpruner.progress import Progress, unreported
from ldpruner.values import Value

ROUNDS = 15  # timings of each pipeline
MIN_ROUNDS = 3  # where a call takes long
LONG_S = 10.0  # timings that take longer are announced
TIME_LIMIT_S = 60.0  # for all timings of a comparison, unless the fewest take longer

logger = logging.getLogger(__name__)


class Percentiles(Value):
    """A measured quantity: its median, and the tenth and ninetieth percentile."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: list[float]) -> "Percentiles":
        """The spread of some measurements."""
        p10, median, p90 = np.percentile(values, [10, 50, 90])
        return cls(median=float(median), p10=float(p10), p90=float(p90))


class PipelineCost(Value):
    """What one pipeline costs.

    Attributes:
        pipeline: its name.
        parameters, macs: of the denoiser, and of one call of it on one sample.
        latency_ms: of one call of the whole pipeline on one sample.
        peak_memory_bytes: at the peak of such a call, weights of all components included.
    """

    pipeline: str
    parameters: int
    macs: int
    latency_ms: Percentiles
    peak_memory_bytes: int


class Comparison(Value):
    """Pipelines measured in one run.

    Attributes:
        pipelines: the cost of each.
        latency_ratio: latency of the second over that of the first, pair by pair.
        rounds: timings of each pipeline.
        machine: where the first one was timed.
    """

    pipelines: tuple[PipelineCost, ...]
    latency_ratio: Percentiles | None = None
    rounds: int = 0
    machine: Machine | None = None

    @property
    def ratio(self) -> float:
        """The median of the latency ratio; 1 for a single pipeline."""
        return self.latency_ratio.median if self.latency_ratio is not None else 1.0


class _Rounds:
    """Rounds of timings: one that does not count, then as many as fit into a time limit.

    Its length is known once the first round has told how long a round takes.
    """

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds

    def __len__(self) -> int:
        return 1 + self._rounds

    def __iter__(self) -> Iterator[int]:
        start = time.perf_counter()
        yield 0
        seconds = time.perf_counter() - start
        self._rounds = min(self._rounds, max(MIN_ROUNDS, int(TIME_LIMIT_S / max(seconds, 1e-9))))
        if self._rounds * seconds > LONG_S:
            logger.info("timing %d rounds takes about %.0f s", self._rounds, self._rounds * seconds)
        yield from range(1, 1 + self._rounds)


def compare(
    pipelines: Mapping[str, DiffusionPipeline],
    probe: Probe,
    *,
    component: str | None = None,
    steps: Mapping[str, int] | None = None,
    rounds: int = ROUNDS,
    progress: Progress = unreported,
) -> Comparison:
    """Measures one pipeline or two in turn, A B A B, so that a machine whose speed drifts treats them alike.

    Each is called on the first sample of the probe: once without counting, then `rounds` times, or fewer where all
    would take more than a minute.

    Args:
        steps: of a pipeline by its name, where they are not those of the probe.

    Raises:
        EvaluationError: it is not one pipeline or two, or there is no round.
    """
    if not 1 <= len(pipelines) <= 2 or rounds < 1:
        raise EvaluationError(
            f"{len(pipelines)} pipelines in {rounds} rounds; give one pipeline or two, and at least a round"
        )
    denoisers = {
        name: find_denoiser(pipeline, component, probe.arguments(pipeline, [0]))
        for name, pipeline in pipelines.items()
    }
    probes = dict.fromkeys(pipelines, probe) | {name: probe.replace(steps=own) for name, own in (steps or {}).items()}
    times: dict[str, list[float]] = {name: [] for name in pipelines}
    for _ in progress(_Rounds(rounds), "timing " + " and ".join(pipelines)):
        for name, pipeline in pipelines.items():
            times[name].append(elapsed_ms(_call(pipeline, probes[name]), module_device(denoisers[name].module)))
    counted = {name: values[1:] for name, values in times.items()}
    measured = [
        PipelineCost(
            pipeline=name,
            parameters=count_parameters(denoisers[name].module),
            macs=denoiser_macs(denoisers[name]),
            latency_ms=Percentiles.of(counted[name]),
            peak_memory_bytes=peak_memory(pipeline, _call(pipeline, probes[name])),
        )
        for name, pipeline in pipelines.items()
    ]
    ratios = [second / first for first, second in zip(*counted.values(), strict=True)] if len(counted) == 2 else []
    latency_ratio = Percentiles.of(ratios) if ratios else None
    return Comparison(
        pipelines=tuple(measured),
        latency_ratio=latency_ratio,
        rounds=len(next(iter(counted.values()))),
        machine=machine_of(next(iter(denoisers.values())).module),
    )


def _call(pipeline: DiffusionPipeline, probe: Probe) -> Callable[[], None]:
    """One whole call of a pipeline on the first sample of a probe, decoding included."""
    return functools.partial(run_probe, pipeline, probe, [0], compiled=True)
