"""Pictures and sounds to train on, with the captions or classes that belong to them."""

import operator
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from diffusers import DiffusionPipeline
from PIL import Image

from ldpruner.errors import FinetuningError, shown
from ldpruner.evaluation.media import PICTURES, Folder, find_media, read_picture, read_sound, resampled
from ldpruner.finetuning.metadata import Row, read_metadata
from ldpruner.pipelines.running import accepted_arguments

Rows = Sequence[Row]
IMAGE, AUDIO = "image", "audio"
CAPTIONS = ("text", "caption", "prompt")


class Item(NamedTuple):
    """A picture, and the arguments of the pipeline's call that belong to it."""

    picture: Image.Image
    arguments: Mapping[str, Any]


class FolderRows(Sequence[Row]):
    """The pictures or sounds of a folder, with their rows of its metadata."""

    def __init__(self, path: Path | str) -> None:
        self.folder: Folder = find_media(path)

    @cached_property
    def _fingerprint(self) -> str:
        """Under this name a dataset of the `datasets` library has one, too."""
        return f"{self.folder.digest} {sorted(map(repr, self._metadata.items()))}"

    @cached_property
    def _metadata(self) -> dict[str, Row]:
        """Rows by the file's name in the folder."""
        return read_metadata(self.folder.path, {self._name(path) for path in self.folder.files})

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder.path).as_posix()

    def __len__(self) -> int:
        return len(self.folder.files)

    def __getitem__(self, index: Any) -> Any:
        path = self.folder.files[index]
        row = self._metadata.get(self._name(path), {})
        return {**row, **({IMAGE: read_picture(path)} if path.suffix.lower() in PICTURES else {AUDIO: path})}


def open_data(data: Path | str | Rows) -> Rows:
    """The rows of a folder; a dataset that is already open is returned as it is.

    Raises:
        DataError: the folder holds no pictures or sounds.
    """
    return FolderRows(data) if isinstance(data, (str, Path)) else data


def items(rows: Rows, pipeline: DiffusionPipeline) -> Iterator[Item]:
    """The pictures of some rows; a sound gives the mel pictures that the pipeline generates.

    Raises:
        FinetuningError: a row lacks what the pipeline needs.
    """
    for row in rows:
        arguments = _arguments(row, pipeline)
        for picture in _pictures(row, pipeline):
            yield Item(picture, arguments)


def _arguments(row: Row, pipeline: DiffusionPipeline) -> dict[str, Any]:
    """The caption or the class of a row, if the pipeline takes one."""
    name = next(iter(accepted_arguments(pipeline, {"prompt": "", "class_labels": 0})), None)
    if name is None:
        return {}
    columns = CAPTIONS if name == "prompt" else ("label",)
    value = next((row[column] for column in columns if row.get(column) is not None), None)
    if value is None:
        raise FinetuningError(
            f"{type(pipeline).__name__} needs data with a column {' or '.join(columns)}; this has {', '.join(row)}"
        )
    return {name: _caption(value) if name == "prompt" else _label(value)}


def _caption(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise FinetuningError(f"caption {shown(value)} is no text; give one text for each picture or sound")
    return value


def _label(value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return int(value) if isinstance(value, str) else operator.index(value)
    except (TypeError, ValueError) as error:
        raise FinetuningError(f"label={shown(value)} is not the number of a class; give the number") from error


def _pictures(row: Row, pipeline: DiffusionPipeline) -> list[Image.Image]:
    mel = pipeline.components.get("mel")
    if isinstance(row.get(IMAGE), Image.Image):
        return [row[IMAGE]]
    if AUDIO not in row or mel is None:
        columns = f"a column {IMAGE}" + (f" or {AUDIO}" if mel is not None else "")
        raise FinetuningError(f"{type(pipeline).__name__} trains on data with {columns}; this has {', '.join(row)}")
    mel.load_audio(raw_audio=_sound(row[AUDIO], mel.get_sample_rate()))
    return [mel.audio_slice_to_image(index) for index in range(max(1, mel.get_number_of_slices()))]


def _sound(audio: Any, rate: int) -> np.ndarray:
    """One channel at a sampling rate, from a file or from what the `datasets` library decoded."""
    if isinstance(audio, (str, Path)):
        wave = read_sound(Path(audio), rate)
    else:
        samples = np.atleast_2d(np.asarray(audio["array"], dtype=np.float64))
        wave = resampled(samples, int(audio["sampling_rate"]), rate)
    return np.asarray(wave.mean(axis=0))
