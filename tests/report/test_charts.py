"""Charts: each value has its place, and the axes hold all of them."""

import itertools

import pytest

from ldpruner.finetuning.settings import History
from ldpruner.report import charts
from ldpruner.report.charts import Chart, frontier_chart, importance_chart, training_chart
from ldpruner.report.structure import operators_of
from ldpruner.scoring.results import Scores


def is_inside(chart: Chart) -> bool:
    return all(
        charts.LEFT <= mark.x <= charts.WIDTH - charts.RIGHT and charts.TOP <= mark.y <= charts.HEIGHT - charts.BOTTOM
        for mark in chart.marks
    )


def test_more_is_further_up_and_to_the_right() -> None:
    chart = frontier_chart([(0.9, 1.0), (0.5, 7.0)], (0.6, 5.0))
    assert chart is not None
    assert is_inside(chart)
    assert [mark.is_chosen for mark in chart.marks] == [False, True, False]
    across, up = ([getattr(mark, side) for mark in chart.marks] for side in "xy")
    assert across == sorted(across)
    assert up == sorted(up)  # y grows downwards, the shift falls with the latency
    assert [tick.text for tick in chart.x.ticks] == ["50 %", "60 %", "70 %", "80 %", "90 %"]


def test_scores_are_on_a_scale_of_decades(scores: Scores) -> None:
    operators = operators_of(scores)
    chart = importance_chart(operators, scores)
    assert chart is not None
    assert is_inside(chart)
    values = [float(tick.text.replace(",", "")) for tick in chart.y.ticks]
    assert all(later == pytest.approx(10 * earlier) for earlier, later in itertools.pairwise(values))
    marks = {mark.operator: mark.y for mark in chart.marks}
    places = sorted(marks, key=lambda place: operators[place or 0].score)
    assert [marks[place] for place in places] == sorted(marks.values(), reverse=True)


def test_a_metric_of_the_user_is_shown_instead_of_the_loss() -> None:
    losses = {"losses": (1.0,), "validation_losses": {0: 1.0, 5: 0.5}, "best_step": 5, "steps": 5}
    qualities = {"qualities": {0: 9.0, 5: 3.0}}
    plain, asked = (training_chart(History.model_validate(losses | more)) for more in ({}, qualities))
    assert plain is not None
    assert asked is not None
    assert (plain.y.title, asked.y.title) == ("validation loss", "quality")
    assert [mark.is_chosen for mark in asked.marks] == [False, True]
    assert asked.line.count(",") == 2


@pytest.mark.parametrize("values", [(1.0,), (0.0, 0.0), (1e-9, 2e-9), (-5.0, 1e6)])
def test_any_values_have_ticks(values: tuple[float, ...]) -> None:
    chart = frontier_chart([(value, value) for value in values], (values[0], values[0]))
    assert chart is not None
    assert is_inside(chart)
    assert 2 <= len(chart.x.ticks) <= charts.MAX_TICKS + 2
