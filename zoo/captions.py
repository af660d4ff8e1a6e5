"""Captioned pictures from a zip in the Hugging Face imagefolder layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from zoo.data import decode_picture, read_rows

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path
    from typing import Any

    from torch import Tensor


KEYWORDS = 4  # of a picture, at most


@dataclass(frozen=True)
class Captioned:
    """Pictures, bytes, [samples, 3, height, width]; their names and styles; and keywords of what they show."""

    pixels: Tensor
    names: tuple[str, ...]
    styles: tuple[str, ...]
    keywords: tuple[str, ...]

    @property
    def captions(self) -> tuple[str, ...]:
        """The prompts of a text-to-image model, such as "grinning face, fluent 3d style"."""
        return tuple(caption(*pair) for pair in zip(self.names, self.styles, strict=True))

    @property
    def descriptions(self) -> tuple[str, ...]:
        """The captions with keywords, such as "koala, noto style, animals-nature, animal, bear"."""
        return tuple(", ".join(pair) for pair in zip(self.captions, self.keywords, strict=True))

    def subset(self, count: int, seed: int) -> Captioned:
        """`count` random pictures."""
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count]
        rows = (tuple(row[index] for index in chosen) for row in (self.names, self.styles, self.keywords))
        return Captioned(self.pixels[chosen], *rows)

    def __len__(self) -> int:
        return len(self.pixels)


def caption(name: str, style: str) -> str:
    """The caption of a name in a style."""
    return f"{name}, {style} style"


def read_captioned(archive: Path, styles: Collection[str]) -> Captioned:
    """Decode the pictures in `styles` that `metadata.jsonl` inside `archive` lists, in its order."""
    rows = [(row | {"style": row["style"].replace("-", " ")}, encoded) for row, encoded in read_rows(archive)]
    rows = [(row, encoded) for row, encoded in rows if row["style"] in styles]
    return Captioned(
        torch.stack([decode_picture(encoded) for _, encoded in rows]),
        tuple(row["caption"] for row, _ in rows),
        tuple(row["style"] for row, _ in rows),
        tuple(_keywords(row) for row, _ in rows),
    )


def _keywords(row: Mapping[str, Any]) -> str:
    """The group of a picture, and the first keywords that are not words of its name."""
    words = row["caption"].lower().split()
    keywords = [keyword for keyword in row["keywords"] if keyword.lower() not in words]
    return ", ".join((row["group"], *keywords[:KEYWORDS]))
