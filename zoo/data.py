"""Labelled images from a zip in the Hugging Face imagefolder layout."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
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
    with zipfile.ZipFile(archive) as opened:
        rows = [json.loads(line) for line in opened.read("metadata.jsonl").splitlines() if line.strip()]
        pixels = torch.stack([_decode(opened.read(row["file_name"])) for row in rows])
    names = {row["label"]: row["label_name"] for row in rows}
    return Images(pixels, torch.tensor([row["label"] for row in rows]), tuple(names[key] for key in sorted(names)))


def _decode(encoded: bytes) -> Tensor:
    with Image.open(io.BytesIO(encoded)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def to_signal(pixels: Tensor) -> Tensor:
    """Bytes to the range -1 to 1 that the networks see."""
    return pixels.float() / 127.5 - 1


def to_pixels(signal: Tensor) -> Tensor:
    """The range -1 to 1 back to bytes, rounded and clipped."""
    return ((signal.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def turned(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn and mirror each image by a random one of the eight symmetries of the square.

    A picture taken from above has no up, so each of the eight is as likely as the original.
    """
    coins = torch.rand((3, len(images), 1, 1, 1), generator=generator) < 0.5
    images = torch.where(coins[0], images.flip(-1), images)
    images = torch.where(coins[1], images.flip(-2), images)
    return torch.where(coins[2], images.transpose(-1, -2), images)
