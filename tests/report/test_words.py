"""Results as text."""

import pytest

from ldpruner.profiling.benchmark import Comparison, Percentiles, PipelineCost
from ldpruner.report.words import cost_rows, counted


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
    rows = list(cost_rows(Comparison(pipelines=tuple(costs), latency_ratio=ratio)))
    assert [row.share for row in rows] == ["25 %", "25 %", "25 %", "100 %"]
    assert (rows[0].original, rows[0].pruned) == ("200.0 ms (199.0 to 201.0)", "50.0 ms (49.0 to 51.0)")
