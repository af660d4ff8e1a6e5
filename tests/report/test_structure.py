"""Operators as nested boxes."""

import math

from ldpruner.report.structure import Box, boxes_of, operators_of
from ldpruner.scoring.results import Scores


def paths(boxes: list[Box]) -> list[str]:
    return [path for box in boxes for path in (box.path, *paths(box.boxes))]


def test_every_operator_is_one_box_inside_those_of_its_name(scores: Scores) -> None:
    operators = operators_of(scores)
    boxes = boxes_of(operators)
    names = {operator.operator for operator in operators}
    assert names == {score.operator for score in scores.scores}
    assert names <= set(paths(boxes))
    assert len(paths(boxes)) == len(set(paths(boxes)))

    def check(box: Box) -> None:
        assert all(inner.path.startswith(f"{box.path}.") for inner in box.boxes)
        if box.operator is not None:
            assert operators[box.operator].operator == box.path
        for inner in box.boxes:
            check(inner)

    for box in boxes:
        check(box)


def test_a_list_is_no_box_and_its_items_have_its_name(scores: Scores) -> None:
    boxes = boxes_of(operators_of(scores))
    assert "down_blocks" not in paths(boxes)
    assert [box.name for box in boxes if box.path == "down_blocks.0"] == ["down_blocks.0"]


def test_the_least_score_is_coldest_and_what_cannot_go_is_hottest(scores: Scores) -> None:
    operators = operators_of(scores)
    failed = operators[0].model_copy(update={"score": math.inf})
    boxes: list[Box] = []

    def collect(found: list[Box]) -> None:
        for box in found:
            boxes.append(box)
            collect(box.boxes)

    collect(boxes_of([failed, *operators[1:]]))
    heats = {box.operator: box.heat for box in boxes if box.operator is not None}
    assert heats[0] == 1
    least = min(range(1, len(operators)), key=lambda place: operators[place].score)
    assert heats[least] == 0
