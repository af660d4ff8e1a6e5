"""All samples on one sheet: a row for each pipeline, a column for each seed, with their names beside them."""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ldpruner.evaluation.metrics import Pixels

GAP = 4  # pixels between samples
FONT_SIZE, LINE = 13, 16  # pixels
MAX_LINES = 4  # of a caption
WHITE, BLACK = 255, 0


def sheet(samples: Pixels, rows: Sequence[str], columns: Sequence[str]) -> Pixels:
    """Samples [rows, columns, frames, height, width, 3] as frames [frames, sheet height, sheet width, 3].

    The names of the rows are on the left, those of the columns above, cut after four lines.
    """
    tiles = np.pad(samples, [(0, 0)] * 3 + [(0, GAP), (0, GAP), (0, 0)], constant_values=WHITE)
    _, _, frames, height, width, _ = tiles.shape
    grid = tiles.transpose(2, 0, 3, 1, 4, 5).reshape(frames, len(rows) * height, len(columns) * width, 3)
    font = ImageFont.load_default(FONT_SIZE)
    letter = font.getlength("n")
    names = [wrapped(name, int((width - GAP) / letter)) for name in columns]
    top = LINE * max(len(lines) for lines in names) + GAP
    left = round(max(font.getlength(name) for name in rows)) + 2 * GAP
    image = Image.new("RGB", (left + grid.shape[2], top), (WHITE,) * 3)
    side = Image.new("RGB", (left, grid.shape[1]), (WHITE,) * 3)
    above, beside = ImageDraw.Draw(image), ImageDraw.Draw(side)
    for place, lines in enumerate(names):
        above.multiline_text((left + place * width, 0), "\n".join(lines), (BLACK,) * 3, font)
    for place, name in enumerate(rows):
        beside.text((GAP, place * height + (height - LINE) // 2), name, (BLACK,) * 3, font)
    whole = np.concatenate([np.broadcast_to(np.asarray(side), (frames, *np.asarray(side).shape)), grid], axis=2)
    return np.concatenate([np.broadcast_to(np.asarray(image), (frames, *np.asarray(image).shape)), whole], axis=1)


def wrapped(text: str, width: int) -> list[str]:
    """The lines of a text, each of at most `width` characters; the rest of a long text is left out."""
    return textwrap.wrap(" ".join(text.split()), max(1, width), max_lines=MAX_LINES, placeholder=" …") or [""]
