"""The sheet of all samples, with the names of rows and columns."""

import numpy as np
import pytest

from ldpruner.evaluation.metrics import Pixels
from ldpruner.evaluation.sheets import GAP, sheet, wrapped

SAMPLES: Pixels = np.arange(2 * 3 * 2, dtype=np.uint8).reshape(2, 3, 2, 1, 1, 1) * np.ones((64, 64, 3), np.uint8)


def test_samples_are_in_rows_and_columns_of_each_frame() -> None:
    frames = sheet(SAMPLES, ["original", "pruned"], ["a", "b", "c"])
    grid = frames[:, -2 * (64 + GAP) :, -3 * (64 + GAP) :]
    for row, column, frame in np.ndindex(2, 3, 2):
        top, left = row * (64 + GAP), column * (64 + GAP)
        assert (grid[frame, top : top + 64, left : left + 64] == SAMPLES[row, column, frame]).all()


def test_their_names_are_written_beside_them() -> None:
    named, unnamed = (sheet(SAMPLES, [name] * 2, [name] * 3) for name in ("original", ""))
    assert named.shape[2] > unnamed.shape[2]
    margin = named.shape[2] - 3 * (64 + GAP)
    assert (named[:, :, :margin] < 255).any()  # dark letters
    assert (named[:, :16, margin:] < 255).any()
    assert (unnamed[:, :16] == 255).all()


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a red cat", ["a red", "cat"]),
        ("a\n\x1b red  cat", ["a \x1b red", "cat"]),
        ("one two six ten four five more less", ["one two", "six ten", "four", "five …"]),
        ("", [""]),
    ],
)
def test_a_name_is_wrapped(text: str, lines: list[str]) -> None:
    assert wrapped(text, 7) == lines
