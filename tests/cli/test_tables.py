"""What people read: words first, units, whole names."""

from typing import Any

import pytest

from ldpruner import Operator, Scores
from ldpruner.cli import tables
from ldpruner.cli.console import Table
from ldpruner.evaluation.evaluate import Evaluation
from ldpruner.evaluation.measures import Measure
from ldpruner.profiling.benchmark import Comparison, Percentiles, PipelineCost

TIMES = Percentiles(median=10.0, p10=9.0, p90=11.0)


def cost(name: str, parameters: int) -> PipelineCost:
    return PipelineCost(
        pipeline=name, parameters=parameters, macs=10**9, latency_ms=TIMES, peak_memory_bytes=40 * 2**20
    )


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (0.476, "2.1 times as fast"),
        (1.343, "1.34 times as slow"),
        (1.01, "as fast"),
        (0.5, "2 times as fast"),
        (0.02, "50 times as fast"),
    ],
)
def test_a_ratio_in_words(ratio: float, words: str) -> None:
    assert tables.speed(ratio) == words


def test_a_comparison_says_which_is_slower() -> None:
    ratio = Percentiles(median=1.343, p10=1.3, p90=1.4)
    pair = Comparison(pipelines=(cost("runs/a/pruned", 86 * 10**5), cost("m", 43 * 10**5)), latency_ratio=ratio)
    assert tables.comparison_headline(pair) == "m is 1.34 times as slow as runs/a/pruned, with 50 % of the parameters"
    text = list(tables.comparison(pair).lines(80))
    assert text[0].split() == ["pruned", "m", "ratio"]
    assert "8.60 M" in text[1]
    assert "40.0 MiB" in text[5]
    assert all(len(line) <= 80 for line in text)


def test_long_names_of_pipelines_do_not_widen_the_table() -> None:
    names = ("a/" + "x" * 40, "b/" + "y" * 40)
    pair = Comparison(pipelines=(cost(names[0], 1), cost(names[1], 1)), latency_ratio=TIMES)
    assert next(tables.comparison(pair).lines()).split() == ["first", "second", "ratio"]


def measure(metric: str, original: Any, pruned: float, interval: tuple[float, float], noise: float | None) -> Measure:
    return Measure(metric=metric, original=original, pruned=pruned, interval=interval, noise_floor=noise)


def evaluation(kid: float) -> Evaluation:
    rows = (
        measure("latency_ratio", 1.0, 0.476, (0.4, 0.5), None),
        measure("parameters", 10**7, 3.4 * 10**6, (0, 0), None),
        measure("kid", 0.01, kid, (kid - 0.01, kid + 0.01), 0.01),
        measure("psnr", None, 20.0, (19.0, 21.0), 10.0),
    )
    return Evaluation(metrics=rows, protocol={"samples": 64, "features": "latents"})


def test_an_evaluation_ends_in_a_verdict() -> None:
    good, bad = (tables.evaluation_headline(evaluation(kid), "recovered") for kid in (0.01, 0.5))
    start = "recovered: 2.1 times as fast as the original, 34 % of the parameters, "
    assert good == start + "quality within the noise of the original (64 samples)"
    assert bad == start + "worse by 1 of 2 metrics: kid"
    (table,) = tables.evaluation(evaluation(0.5), "recovered")
    rows = table.rows
    assert [row[-1] for row in rows] == ["", "", "worse", "as good"]
    assert [row[0] for row in rows] == ["latency_ratio ↓", "parameters ↓", "kid ↓", "psnr ↑"]
    assert rows[3][1] == ""


def test_a_score_has_its_difference_on_a_row_of_its_own_and_categories_a_table() -> None:
    score = measure("my_metric:score", 5.0, 4.5, (4.0, 5.0), 5.1).replace(
        higher_is_better=True, difference=-0.5, difference_interval=(-0.75, -0.25)
    )
    small = score.replace(interval=None, difference_interval=None)
    rows: dict[str, tuple[Measure, ...]] = {
        "Animals": (score, measure("psnr", None, 20.0, (19.0, 21.0), 10.0)),
        "Places": (small, small),
    }
    scored = Evaluation(metrics=(score,), by_category=rows, protocol={"samples": 64, "features": "latents"})
    whole, categories = tables.evaluation(scored, "pruned")
    assert whole.rows == [
        ("my_metric:score ↑", "5", "4.5", "4 to 5", "5.1", ""),
        ("  difference", "", "-0.5", "-0.75 to -0.25", "", "worse"),
    ]
    assert list(categories.rows[:2]) == [
        ("my_metric:score ↑", "Animals", "5", "4.5", "-0.75 to -0.25", "worse"),
        ("my_metric:score ↑", "Places", "5", "4.5", "", ""),
    ]
    assert categories.rows[2][0] == "psnr ↑"
    assert all(len(line) <= 80 for table in (whole, categories) for line in table.lines(80))
    assert tables.evaluation_headline(scored, "pruned") == "pruned: worse by 1 of 1 metrics: my_metric:score"


def test_a_summary_counts_what_holds_others_once(operators: tuple[Operator, ...]) -> None:
    by_stage, by_type = tables.operators_summary(operators, {"parameters": 1000, "macs": 1000})
    for table in (by_stage, by_type):
        assert sum(int(row[1]) for row in table.rows) == len(operators)
    rows = {row[0]: row for row in by_stage.rows}
    mid = next(operator for operator in operators if operator.name == "mid_block")
    assert rows["mid_block"][3] == f"{mid.parameters / 10:.1f} %"


def test_operators_are_ordered_by_what_is_asked(operators: tuple[Operator, ...]) -> None:
    assert tables.ordered(operators, "run") == list(operators)
    assert [operator.name for operator in tables.ordered(operators, "name")] == sorted(
        operator.name for operator in operators
    )
    macs = [operator.macs for operator in tables.ordered(operators, "macs")]
    assert macs == sorted(macs, reverse=True)


def test_scores_come_lowest_first(scores: Scores) -> None:
    table = tables.scores(scores)[1]
    assert isinstance(table, Table)
    shown = [float(row[3]) for row in table.rows]
    assert shown == sorted(shown)
    assert len(shown) == len(scores.scores)
