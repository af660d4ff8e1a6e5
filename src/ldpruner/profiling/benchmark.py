"""Times one pipeline, or two in turn, and compares what they cost."""

import functools
import logging
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from diffusers import DiffusionPipeline

from ldpruner.operators.discovery import denoiser_macs
from ldpruner.pipelines.denoiser import Denoiser, find_denoiser
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pipelines.offload import module_device
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import run_pipeline
from ldpruner.profiling.costs import elapsed_ms, peak_memory
from ldpruner.values import Value

logger = logging.getLogger(__name__)

ROUNDS = 15
MIN_ROUNDS = 3  # however slow the pipelines are
MAX_SECONDS = 120.0


class Percentiles(Value):
    """A measured quantity: its median, and the tenth and ninetieth percentile."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: list[float]) -> "Percentiles":
        """The percentiles of some measurements."""
        p10, median, p90 = np.percentile(values, [10, 50, 90])
        return cls(median=float(median), p10=float(p10), p90=float(p90))


class PipelineCost(Value):
    """What one pipeline costs.

    Attributes:
        pipeline: its name.
        parameters: weights of the denoiser.
        macs: multiply-accumulates of one denoiser call on one sample.
        latency_ms: time of one call of the whole pipeline on one sample.
        peak_memory_bytes: at the peak of such a call, weights of all components included.
    """

    pipeline: str
    parameters: int
    macs: int
    latency_ms: Percentiles
    peak_memory_bytes: int


class Comparison(Value):
    """What one or two pipelines cost, measured in one run.

    Attributes:
        pipelines: in the order in which they were given.
        latency_ratio: the latency of the second over that of the first, round by round; None for one pipeline.
        rounds: how many timings of each pipeline counted.
    """

    pipelines: tuple[PipelineCost, ...]
    latency_ratio: Percentiles | None = None
    rounds: int = ROUNDS

    @property
    def ratio(self) -> float:
        """The median latency ratio; 1 for a single pipeline."""
        return self.latency_ratio.median if self.latency_ratio is not None else 1.0


class Benchmark:
    """Times pipelines in turn, A B A B, so that a machine whose speed drifts treats them alike.

    Iterating times one round after the other. The length is the number of rounds; warming up may reduce it.

    Args:
        pipelines: one or two, by name.
        probe: its steps, and the prompt of its first sample, are what the pipelines are called with.
        component: the name of the denoiser, for pipelines with more than one.
        rounds: how many timings of each pipeline to make.
        max_seconds: fewer rounds are made if they would take longer, but no fewer than `MIN_ROUNDS`.
    """

    def __init__(
        self,
        pipelines: Mapping[str, DiffusionPipeline],
        probe: Probe,
        component: str | None = None,
        rounds: int = ROUNDS,
        max_seconds: float = MAX_SECONDS,
    ) -> None:
        self.pipelines, self.probe, self.component = pipelines, probe, component
        self.rounds, self.max_seconds = rounds, max_seconds
        self._denoisers: dict[str, Denoiser] = {}
        self._round_seconds = 0.0
        self._times: dict[str, list[float]] = {name: [] for name in pipelines}

    def __len__(self) -> int:
        return self.rounds

    def warm_up(self) -> float:
        """Runs one round that does not count, reduces the number of rounds to the time limit, and estimates.

        Returns:
            The seconds that all rounds and the comparison will take.
        """
        if not self._denoisers:
            self._denoisers = self._find_denoisers()
            self._round_seconds = sum(self._run_round().values()) / 1000
            affordable = max(MIN_ROUNDS, int(self.max_seconds / self._round_seconds))
            if affordable < self.rounds:
                logger.info("%d rounds in place of %d: one takes %.0f s", affordable, self.rounds, self._round_seconds)
                self.rounds = affordable
        return (len(self) + 1) * self._round_seconds

    def __iter__(self) -> Iterator[None]:
        self.warm_up()
        while len(next(iter(self._times.values()))) < self.rounds:
            for name, milliseconds in self._run_round().items():
                self._times[name].append(milliseconds)
            yield

    def comparison(self) -> Comparison:
        """The results of the rounds; the rounds that are missing are run first. Measures the peak memory, too."""
        for _ in self:
            pass
        first, *others = self._times.values()
        ratios = [other / own for own, other in zip(first, others[0], strict=True)] if others else []
        return Comparison(
            pipelines=tuple(self._cost(name) for name in self.pipelines),
            latency_ratio=Percentiles.of(ratios) if ratios else None,
            rounds=self.rounds,
        )

    def _find_denoisers(self) -> dict[str, Denoiser]:
        return {
            name: find_denoiser(pipeline, self.component, self.probe.arguments(pipeline, [0]))
            for name, pipeline in self.pipelines.items()
        }

    def _run_round(self) -> dict[str, float]:
        return {
            name: elapsed_ms(self._call(name), module_device(denoiser.module))
            for name, denoiser in self._denoisers.items()
        }

    def _call(self, name: str) -> Callable[[], None]:
        """One call of a whole pipeline on the first sample of the probe, decoding included."""
        pipeline = self.pipelines[name]
        return functools.partial(run_pipeline, pipeline, self.probe.arguments(pipeline, [0]), compiled=True)

    def _cost(self, name: str) -> PipelineCost:
        denoiser = self._denoisers[name]
        return PipelineCost(
            pipeline=name,
            parameters=count_parameters(denoiser.module),
            macs=denoiser_macs(denoiser),
            latency_ms=Percentiles.of(self._times[name]),
            peak_memory_bytes=peak_memory(self.pipelines[name], self._call(name)),
        )


def compare(
    pipelines: Mapping[str, DiffusionPipeline],
    probe: Probe,
    *,
    component: str | None = None,
    rounds: int = ROUNDS,
    max_seconds: float = MAX_SECONDS,
) -> Comparison:
    """Measures one or two pipelines in one call; see `Benchmark`."""
    return Benchmark(pipelines, probe, component, rounds, max_seconds).comparison()
