"""Labelled images from a zip in the Hugging Face imagefolder layout."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Images:
    """Decoded images and their classes.

    `pixels` is [samples, channels, height, width], unsigned bytes; `labels` is [samples]; `classes[label]` is a name.
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pixels)


def read_images(archive: Path) -> Images:
    """Decode every image that `metadata.jsonl` inside `archive` lists, in its order."""
    rows = list(read_rows(archive))
    pixels = torch.stack([decode_picture(encoded) for _, encoded in rows])
    names = {row["label"]: row["label_name"] for row, _ in rows}
    return Images(pixels, torch.tensor([row["label"] for row, _ in rows]), tuple(names[key] for key in sorted(names)))


def read_rows(archive: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Each row of `metadata.jsonl` inside `archive`, with the bytes of the file it names."""
    with zipfile.ZipFile(archive) as opened:
        for line in opened.read("metadata.jsonl").splitlines():
            if line.strip():
                row = json.loads(line)
                yield row, opened.read(row["file_name"])


def decode_picture(encoded: bytes) -> Tensor:
    """Bytes of colour, [3, height, width]."""
    with Image.open(io.BytesIO(encoded)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def to_signal(pixels: Tensor) -> Tensor:
    """Bytes to the range -1 to 1 that the networks see."""
    return pixels.float() / 127.5 - 1


def to_pixels(signal: Tensor) -> Tensor:
    """The range -1 to 1 back to bytes, rounded and clipped."""
    return ((signal.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


class Augmentation(Protocol):
    """Varies images at random, [samples, channels, height, width], without changing what they show."""

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor: ...


def unchanged(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images as they are."""
    return images


def mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image as it is or seen in a mirror, left for right."""
    coins = torch.rand((len(images), 1, 1, 1), generator=generator) < 0.5
    return torch.where(coins, images.flip(-1), images)


def rolled(images: Tensor, generator: torch.Generator, max_shift: int = 4) -> Tensor:
    """All images shifted together by up to `max_shift` pixels, circularly."""
    down, right = torch.randint(-max_shift, max_shift + 1, (2,), generator=generator).tolist()
    return images.roll((down, right), (-2, -1))


def turned(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn and mirror each image by a random one of the eight symmetries of the square.

    A picture taken from above has no up, so each of the eight is as likely as the original.
    """
    coins = torch.rand((3, len(images), 1, 1, 1), generator=generator) < 0.5
    images = torch.where(coins[0], images.flip(-1), images)
    images = torch.where(coins[1], images.flip(-2), images)
    return torch.where(coins[2], images.transpose(-1, -2), images)
