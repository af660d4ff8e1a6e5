"""The denoiser as nested boxes: stages, blocks and operators, by their dotted names."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ldpruner.scoring.results import Score, Scores


@dataclass
class Box:
    """A module of the denoiser.

    Attributes:
        path: its dotted name.
        operator: the place of its operator in `operators_of`; None where it is no operator.
        heat: the rank of its score among all, 0 for the least important and 1 for the most.
        boxes: the modules in it that are operators or hold some.
    """

    path: str
    operator: int | None = None
    heat: float = 0.0
    boxes: list["Box"] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The part of its name that the box around it does not have; a number keeps the name of its list."""
        *outer, last = self.path.split(".")
        return ".".join([*outer[-1:], last]) if last.isdigit() else last


def operators_of(scores: Scores) -> list[Score]:
    """The modification of the lowest score for each operator, in the order of the scores."""
    lowest: dict[str, Score] = {}
    for score in scores.scores:
        if score.operator not in lowest or score.score < lowest[score.operator].score:
            lowest[score.operator] = score
    return list(lowest.values())


def boxes_of(operators: Sequence[Score]) -> list[Box]:
    """The outermost boxes, with all others in them. A list is no box of its own, its items are."""
    heats = _heats(operators)
    boxes: dict[str, Box] = {}
    roots: list[Box] = []
    for place, operator in enumerate(operators):
        siblings = roots
        parts = operator.operator.split(".")
        for end in range(1, len(parts) + 1):
            path = ".".join(parts[:end])
            if end < len(parts) and parts[end].isdigit():
                continue  # a list
            if path not in boxes:
                boxes[path] = Box(path)
                siblings.append(boxes[path])
            siblings = boxes[path].boxes
        box = boxes[operator.operator]
        box.operator, box.heat = place, heats[place]
    return roots


def _heats(operators: Sequence[Score]) -> list[float]:
    """Ranks as fractions; what cannot be removed is the most important."""
    values = np.array([operator.score for operator in operators])
    ranks = values.argsort(kind="stable").argsort(kind="stable")
    return [float(rank) for rank in ranks / max(1, len(operators) - 1)]
