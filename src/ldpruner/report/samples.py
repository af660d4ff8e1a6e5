"""Samples of a run folder as data URIs, a pair or more for each seed."""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ldpruner.errors import RunStoreError, one_line
from ldpruner.evaluation.samples import GAP

MAX_SIDE = 512  # pixels of a picture on the page
QUALITY = 90
NAMES = {"before": "original", "after": "pruned"}  # of the rows of a sheet; before comes first


@dataclass(frozen=True)
class Sample:
    """One seed.

    Attributes:
        caption: its prompt, or its seed.
        media: a data URI for each pipeline, the `original` first.
    """

    caption: str
    media: dict[str, str]

    @property
    def others(self) -> list[tuple[str, str]]:
        """All but the original."""
        return list(self.media.items())[1:]


@dataclass(frozen=True)
class Samples:
    """What the page shows and plays.

    Attributes:
        pictures, sounds: one for each seed.
        animation: a data URI of all videos; None if there are none.
    """

    pictures: tuple[Sample, ...] = ()
    sounds: tuple[Sample, ...] = ()
    animation: str | None = None


def read_samples(folder: Path) -> Samples:
    """The samples that `run` wrote; none if there are none.

    Raises:
        RunStoreError: they cannot be read.
    """
    sheet = folder / "samples.json"
    if not sheet.exists():
        return Samples()
    try:
        content = json.loads(sheet.read_bytes())
        rows, seeds = [str(row) for row in content["rows"]], list(content["samples"])
        captions = [str(seed.get("prompt") or f"seed {seed['seed']}") for seed in seeds]
        return _read(folder, rows, captions)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunStoreError(f"cannot read {sheet}: {one_line(error)}; run again") from error


def _read(folder: Path, rows: list[str], captions: list[str]) -> Samples:
    picture, animation = (folder / f"{'-'.join(rows)}{ending}" for ending in (".png", ".gif"))
    sounds = []
    for index, caption in enumerate(captions):
        files = {NAMES.get(row, row): folder / f"{index}-{row}.wav" for row in rows}
        if all(file.exists() for file in files.values()):
            sounds.append(
                Sample(caption, {name: _uri("audio/wav", file.read_bytes()) for name, file in files.items()})
            )
    return Samples(
        pictures=_tiles(picture, rows, captions) if picture.exists() else (),
        sounds=tuple(sounds),
        animation=_uri("image/gif", animation.read_bytes()) if animation.exists() else None,
    )


def _tiles(path: Path, rows: list[str], captions: list[str]) -> tuple[Sample, ...]:
    """The pictures of a sheet, cut apart."""
    with Image.open(path) as sheet:
        picture = sheet.convert("RGB")
    width, height = (picture.width + GAP) // len(captions), (picture.height + GAP) // len(rows)
    samples = []
    for column, caption in enumerate(captions):
        tiles = {}
        for row, name in enumerate(rows):
            left, top = column * width, row * height
            tile = picture.crop((left, top, left + width - GAP, top + height - GAP))
            tile.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            tile.save(buffer, "WEBP", quality=QUALITY)
            tiles[NAMES.get(name, name)] = _uri("image/webp", buffer.getvalue())
        samples.append(Sample(caption, tiles))
    return tuple(samples)


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
