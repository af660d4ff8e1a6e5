"""Captioned pictures from a zip in the Hugging Face imagefolder layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from zoo.data import decode_picture, read_rows

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


@dataclass(frozen=True)
class Captioned:
    """Pictures, bytes, [samples, 3, height, width]; their names; and their styles."""

    pixels: Tensor
    names: tuple[str, ...]
    styles: tuple[str, ...]

    @property
    def captions(self) -> tuple[str, ...]:
        """The prompts of a text-to-image model, such as "grinning face, fluent 3d style"."""
        return tuple(caption(*pair) for pair in zip(self.names, self.styles, strict=True))

    def subset(self, count: int, seed: int) -> Captioned:
        """`count` random pictures."""
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count]
        names, styles = (tuple(row[index] for index in chosen) for row in (self.names, self.styles))
        return Captioned(self.pixels[chosen], names, styles)

    def __len__(self) -> int:
        return len(self.pixels)


def caption(name: str, style: str) -> str:
    """The caption of a name in a style."""
    return f"{name}, {style} style"


def read_captioned(archive: Path) -> Captioned:
    """Decode every picture that `metadata.jsonl` inside `archive` lists, in its order."""
    rows = list(read_rows(archive))
    return Captioned(
        torch.stack([decode_picture(encoded) for _, encoded in rows]),
        tuple(row["caption"] for row, _ in rows),
        tuple(row["style"].replace("-", " ") for row, _ in rows),
    )
