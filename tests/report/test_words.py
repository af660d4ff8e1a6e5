"""Results as text."""

import pytest

from ldpruner.profiling.benchmark import Comparison, Percentiles, PipelineCost
from ldpruner.report.words import cost_measures_of, cost_rows, counted


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("parameters", 8_604_000, "8.6 M"),
        ("macs", 104_900_000_000, "105 G"),
        ("macs", 12, "12"),
        ("peak_memory_bytes", 3 * 2**29, "1.5 GiB"),
        ("peak_memory_bytes", 0, "0"),
    ],
)
def test_a_count_has_a_unit(metric: str, value: float, text: str) -> None:
    assert counted(metric, value) == text


def test_costs_are_side_by_side() -> None:
    costs = [
        PipelineCost(
            pipeline=name,
            parameters=count,
            macs=count,
            latency_ms=Percentiles(median=count, p10=count - 1, p90=count + 1),
            peak_memory_bytes=2**20,
        )
        for name, count in (("original", 200), ("pruned", 50))
    ]
    ratio = Percentiles(median=0.25, p10=0.2, p90=0.3)
    latency, *others = cost_rows(cost_measures_of(Comparison(pipelines=tuple(costs), latency_ratio=ratio), None))
    assert {row.name: row.share for row in others} == {"parameters": "25 %", "MACs": "25 %", "peak memory": "100 %"}
    assert (latency.original, latency.pruned, latency.share) == ("200.0 ms", "50.0 ms", "25 %")
    assert latency.interval == "49.0 ms to 51.0 ms"
