"""Pipelines timed in turn, within a time limit."""

from collections.abc import Iterator
from typing import TypeVar

import pytest
from diffusers import DiffusionPipeline

from ldpruner import Probe
from ldpruner.errors import EvaluationError
from ldpruner.profiling import benchmark
from ldpruner.profiling.benchmark import MIN_ROUNDS, compare
from ldpruner.progress import Long

Item = TypeVar("Item")


@pytest.mark.parametrize(("limit", "timings"), [(1e9, 6), (0.0, MIN_ROUNDS)])
def test_every_round_is_reported_and_slow_pipelines_get_fewer(
    tiny: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch, limit: float, timings: int
) -> None:
    lengths: list[int] = []

    def watched(work: Long[Item], description: str) -> Iterator[Item]:
        assert description == "timing a and b"
        for item in work:
            lengths.append(len(work))
            yield item

    monkeypatch.setattr(benchmark, "TIME_LIMIT_S", limit)
    comparison = compare({"a": tiny, "b": tiny}, Probe(steps=1), rounds=6, progress=watched)
    assert lengths == [7] + [1 + timings] * timings
    assert comparison.latency_ratio is not None


def test_a_single_pipeline_has_no_ratio(tiny: DiffusionPipeline) -> None:
    comparison = compare({"a": tiny}, Probe(steps=1), rounds=2)
    assert (comparison.latency_ratio, comparison.ratio) == (None, 1.0)
    assert comparison.pipelines[0].latency_ms.p10 <= comparison.pipelines[0].latency_ms.p90


@pytest.mark.parametrize(("count", "rounds"), [(0, 2), (3, 2), (1, 0)])
def test_what_cannot_be_compared_is_refused(tiny: DiffusionPipeline, count: int, rounds: int) -> None:
    with pytest.raises(EvaluationError, match=f"{count} pipelines in {rounds} rounds"):
        compare({str(place): tiny for place in range(count)}, Probe(samples=1, steps=1), rounds=rounds)
