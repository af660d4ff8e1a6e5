"""Pictures and sounds to learn from, row by row, with what would ask for each."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from diffusers import DiffusionPipeline
from PIL import Image

from ldpruner.errors import DataError, FinetuningError, one_line
from ldpruner.evaluation.media import PICTURES, Folder, find_media, read_picture, read_sound, resampled
from ldpruner.pipelines.running import accepted_arguments

Row = Mapping[str, Any]
Rows = Sequence[Row]
IMAGE, AUDIO = "image", "audio"
CAPTIONS = ("text", "caption", "prompt")
LISTINGS = ("metadata.jsonl", "metadata.csv")  # of the layout that the Hub calls imagefolder and audiofolder


@dataclass(frozen=True)
class Item:
    """A picture to learn from, and the arguments of the pipeline's call that would ask for it."""

    picture: Image.Image
    asked: Mapping[str, Any]


class FolderRows(Sequence[Row]):
    """The pictures or sounds of a folder, with what its listing says of each."""

    def __init__(self, path: Path | str) -> None:
        self.folder: Folder = find_media(path)

    @cached_property
    def _fingerprint(self) -> str:
        """As a dataset of the `datasets` library has one."""
        return f"{self.folder.digest} {sorted(map(repr, self._listing.items()))}"

    @cached_property
    def _listing(self) -> dict[str, Row]:
        """By the file's name in the folder."""
        found = next((path for name in LISTINGS if (path := self.folder.path / name).exists()), None)
        if found is None:
            return {}
        try:
            with found.open(encoding="utf-8-sig", newline="") as opened:
                rows = (
                    map(json.loads, filter(str.strip, opened)) if found.suffix == ".jsonl" else csv.DictReader(opened)
                )
                return {str(row["file_name"]): row for row in rows}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"cannot read {found}: {one_line(error)}") from error

    def __len__(self) -> int:
        return len(self.folder.files)

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> Rows: ...
    def __getitem__(self, place: int | slice) -> Row | Rows:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        path = self.folder.files[place]
        known = self._listing.get(path.relative_to(self.folder.path).as_posix(), {})
        if path.suffix.lower() in PICTURES:
            return {**known, IMAGE: read_picture(path)}
        return {**known, AUDIO: path}


def open_data(data: Path | str | Rows) -> Rows:
    """The rows of a folder, or of a dataset that is open already.

    Raises:
        DataError: the folder holds no pictures or sounds.
    """
    return FolderRows(data) if isinstance(data, (str, Path)) else data


def items(rows: Rows, pipeline: DiffusionPipeline) -> Iterator[Item]:
    """The pictures of some rows; a sound becomes the mel pictures that the pipeline draws.

    Raises:
        FinetuningError: a row lacks what the pipeline needs.
    """
    for row in rows:
        asked = _asked(row, pipeline)
        for picture in _pictures(row, pipeline):
            yield Item(picture, asked)


def _asked(row: Row, pipeline: DiffusionPipeline) -> dict[str, Any]:
    """The caption or the class of a row, if the pipeline takes one."""
    name = next(iter(accepted_arguments(pipeline, {"prompt": "", "class_labels": 0})), None)
    if name is None:
        return {}
    columns = CAPTIONS if name == "prompt" else ("label",)
    column = next((one for one in columns if row.get(one) is not None), None)
    if column is None:
        raise FinetuningError(
            f"{type(pipeline).__name__} needs data with a column {' or '.join(columns)}; this has {', '.join(row)}"
        )
    try:
        return {name: row[column] if name == "prompt" else int(row[column])}
    except ValueError as error:
        raise FinetuningError(f"label={row[column]!r} is no number of a class; give the number") from error


def _pictures(row: Row, pipeline: DiffusionPipeline) -> list[Image.Image]:
    mel = pipeline.components.get("mel")
    if IMAGE in row:
        return [row[IMAGE]]
    if AUDIO not in row or mel is None:
        wanted = f"a column {IMAGE}" + (f" or {AUDIO}" if mel is not None else "")
        raise FinetuningError(f"{type(pipeline).__name__} learns from data with {wanted}; this has {', '.join(row)}")
    mel.load_audio(raw_audio=_sound(row[AUDIO], mel.get_sample_rate()))
    return [mel.audio_slice_to_image(place) for place in range(max(1, mel.get_number_of_slices()))]


def _sound(audio: Any, rate: int) -> np.ndarray:
    """One channel at a sampling rate, from a file or from what the `datasets` library decoded."""
    if isinstance(audio, (str, Path)):
        wave = read_sound(Path(audio), rate)
    else:
        given = np.atleast_2d(np.asarray(audio["array"], dtype=np.float64))
        wave = resampled(given, int(audio["sampling_rate"]), rate)
    return np.asarray(wave.mean(axis=0))
