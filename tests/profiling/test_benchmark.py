"""Pipelines are timed in turn, within a time limit."""

import itertools
from collections.abc import Callable
from typing import TypeAlias

import pytest
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.operators.discovery import denoiser_macs
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.profiling import benchmark
from ldpruner.profiling.benchmark import MIN_ROUNDS, Benchmark, Percentiles, compare

PROBE = ldpruner.Probe(samples=1, steps=1)
Timing: TypeAlias = Callable[..., list[float]]


def test_percentiles_are_those_of_the_values() -> None:
    assert Percentiles.of([float(value) for value in range(101)]) == Percentiles(median=50, p10=10, p90=90)


def test_a_pipeline_compared_with_itself_costs_the_same(tiny: DiffusionPipeline) -> None:
    comparison = compare({"first": tiny, "second": tiny}, PROBE, rounds=5)
    first, second = comparison.pipelines
    assert (first.pipeline, second.pipeline) == ("first", "second")
    assert first.parameters == second.parameters == count_parameters(tiny.unet)
    assert first.macs == second.macs == denoiser_macs(find_denoiser(tiny))
    assert first.peak_memory_bytes == second.peak_memory_bytes > 0
    assert 0.2 < comparison.ratio < 5
    assert comparison.rounds == 5


def test_a_single_pipeline_has_no_ratio(tiny: DiffusionPipeline) -> None:
    comparison = compare({"only": tiny}, PROBE, rounds=2)
    assert comparison.latency_ratio is None
    assert comparison.ratio == 1


@pytest.fixture
def set_seconds(monkeypatch: pytest.MonkeyPatch) -> Timing:
    """Lets calls take given seconds in turn, and returns a list of those of all calls."""

    def set_seconds(*seconds: float) -> list[float]:
        durations, calls = itertools.cycle(seconds), list[float]()

        def elapsed_ms(*_: object) -> float:
            calls.append(next(durations))
            return 1000 * calls[-1]

        monkeypatch.setattr(benchmark, "elapsed_ms", elapsed_ms)
        return calls

    return set_seconds


def test_pipelines_are_timed_in_turn_after_one_round_that_does_not_count(
    tiny: DiffusionPipeline, set_seconds: Timing
) -> None:
    calls = set_seconds(2.0, 1.0)
    comparison = Benchmark({"slow": tiny, "fast": tiny}, PROBE, rounds=4).comparison()
    assert calls == [2.0, 1.0] * (1 + 4)
    assert comparison.ratio == 0.5
    assert [cost.latency_ms.median for cost in comparison.pipelines] == [2000, 1000]


@pytest.mark.parametrize(
    ("max_seconds", "rounds"), [(1000.0, 15), (60.0, 6), (5.0, MIN_ROUNDS)], ids=["fits", "fewer", "at least"]
)
def test_a_slow_pipeline_gets_as_many_rounds_as_fit(
    tiny: DiffusionPipeline, set_seconds: Timing, max_seconds: float, rounds: int
) -> None:
    set_seconds(6.0, 4.0)
    pairs = Benchmark({"first": tiny, "second": tiny}, PROBE, max_seconds=max_seconds)
    assert len(pairs) == 15
    assert pairs.warm_up() == 10.0 * (rounds + 1)
    assert len(pairs) == len(list(pairs)) == pairs.comparison().rounds == rounds


def test_a_benchmark_that_was_stopped_goes_on(tiny: DiffusionPipeline, set_seconds: Timing) -> None:
    calls = set_seconds(1.0)
    timings = Benchmark({"only": tiny}, PROBE, rounds=3)
    next(iter(timings))
    assert len(calls) == 2
    assert timings.comparison().rounds == 3
    assert len(calls) == 4
