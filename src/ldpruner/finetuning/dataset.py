"""Pictures, videos and sounds to train on, with the captions, classes or images that belong to them."""

import operator
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps
from torch import Tensor

from ldpruner.errors import FinetuningError, shown
from ldpruner.evaluation.media import PICTURES, Folder, find_media, read_picture, read_sound, resampled, rgb
from ldpruner.finetuning.metadata import Row, read_metadata
from ldpruner.pipelines.running import accepted_arguments, networks

Rows = Sequence[Row]
IMAGE, VIDEO, AUDIO = "image", "video", "audio"
CAPTIONS = ("text", "caption", "prompt")
SOURCES = ("conditioning_image", "original_image")  # columns of an image that a picture is made from
OTHER_FILE = "_file_name"  # ends the names of the metadata's columns that name a further picture

# A picture, the frames of a video, or a sound [channels, time] in -1 to 1.
Media: TypeAlias = Image.Image | Sequence[Image.Image] | np.ndarray


class Item(NamedTuple):
    """A picture, a video or a sound, and the arguments of the pipeline's call that belong to it."""

    media: Media
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
        return len(self._files)

    def __getitem__(self, index: Any) -> Any:
        path = self._files[index]
        row = self._metadata.get(self._name(path), {})
        others = {
            name.removesuffix(OTHER_FILE): read_picture(self.folder.path / str(value))
            for name, value in row.items()
            if name.endswith(OTHER_FILE) and value
        }
        own = {IMAGE: read_picture(path)} if path.suffix.lower() in PICTURES else {AUDIO: path}
        return {**row, **others, **own}

    @cached_property
    def _files(self) -> list[Path]:
        """The files to train on: those that a row names as its further picture are not among them."""
        rows = self._metadata.values()
        others = {str(value) for row in rows for name, value in row.items() if name.endswith(OTHER_FILE)}
        return [path for path in self.folder.files if self._name(path) not in others]


def open_data(data: Path | str | Rows) -> Rows:
    """The rows of a folder; a dataset that is already open is returned as it is.

    Raises:
        DataError: the folder holds no pictures or sounds.
    """
    return FolderRows(data) if isinstance(data, (str, Path)) else data


def items(
    rows: Rows, pipeline: DiffusionPipeline, call: Mapping[str, Any] | None = None, *, from_itself: bool = True
) -> Iterator[Item]:
    """The media of some rows; a sound gives the mel pictures that the pipeline generates, if it generates such.

    Args:
        rows: of data.
        pipeline: what is trained.
        call: arguments of the pipeline's call. For an image there, the row's column of that name, `conditioning_image`
            or `original_image` is taken.
        from_itself: whether a row without such a column gives its own picture: a picture is inpainted, scaled up, or
            set in motion from itself.

    Raises:
        FinetuningError: a row lacks what the pipeline needs.
    """
    for row in rows:
        arguments = _text_or_class(row, pipeline, call or {})
        for media in _media(row, pipeline):
            images = _images(row, media if from_itself else None, pipeline, call or {})
            yield Item(media, {**arguments, **images})


def _text_or_class(row: Row, pipeline: DiffusionPipeline, call: Mapping[str, Any]) -> dict[str, Any]:
    """The caption or the class of a row, if the pipeline takes one and its call has none."""
    name = next(iter(accepted_arguments(pipeline, {"prompt": "", "class_labels": 0})), None)
    is_embedded = any(key.startswith(f"{name}_") and value is not None for key, value in call.items())
    if name is None or is_embedded:
        return {}
    columns = CAPTIONS if name == "prompt" else ("label",)
    value = next((row[column] for column in columns if row.get(column) is not None), None)
    if value is None:
        raise FinetuningError(
            f"{type(pipeline).__name__} needs data with a column {' or '.join(columns)}; this has {', '.join(row)}"
        )
    return {name: _caption(value) if name == "prompt" else _label(value)}


def _images(row: Row, media: Media | None, pipeline: DiffusionPipeline, call: Mapping[str, Any]) -> dict[str, Any]:
    """The images of a row that stand for those of the call, in the sizes of these; masks stay as they are."""
    images: dict[str, Any] = {}
    for name, value in call.items():
        example = value[0] if isinstance(value, (list, tuple)) and value else value
        is_image = isinstance(example, Image.Image) or (IMAGE in name and not isinstance(example, (int, float, str)))
        if example is None or not is_image or "mask" in name or name.startswith("negative"):
            continue
        if IMAGE not in name:
            raise FinetuningError(f"{type(pipeline).__name__} takes frames as {name}; finetune without data")
        columns = [column for column in (name, *SOURCES) if column != IMAGE]
        picture = next((row[column] for column in columns if row.get(column) is not None), None)
        if picture is None and name == IMAGE and media is not None and not isinstance(media, np.ndarray):
            picture = media if isinstance(media, Image.Image) else media[0]
        if picture is None:
            raise FinetuningError(
                f"{type(pipeline).__name__} needs data with a column {' or '.join(columns)}; this has {', '.join(row)}"
            )
        images[name] = _in_the_form_of(picture, value if isinstance(value, Tensor) else example)
    return images


def _in_the_form_of(image: Any, example: Any) -> Any:
    """An image or its embedding as the call has one: in its size, as pixels in -1 to 1, or as numbers of its shape."""
    if isinstance(image, Image.Image) and isinstance(example, Image.Image):
        return ImageOps.fit(rgb(image), example.size)
    if isinstance(image, Image.Image):
        height, width = example.shape[-2:]
        image = VaeImageProcessor(vae_scale_factor=1).preprocess(rgb(image), height, width, resize_mode="crop")
    if not isinstance(example, Tensor):
        return image
    return torch.as_tensor(image, dtype=example.dtype).reshape(example.shape[1:])


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


def _media(row: Row, pipeline: DiffusionPipeline) -> Sequence[Media]:
    """What a row holds to train on."""
    mel = pipeline.components.get("mel")
    rate = mel.get_sample_rate() if mel is not None else _sampling_rate(pipeline)
    if isinstance(row.get(IMAGE), Image.Image):
        return [row[IMAGE]]
    if row.get(VIDEO) is not None:
        return [[_frame(frame) for frame in row[VIDEO]]]
    if AUDIO not in row or rate is None:
        columns = f"a column {IMAGE} or {VIDEO}" + (f" or {AUDIO}" if rate is not None else "")
        raise FinetuningError(f"{type(pipeline).__name__} trains on data with {columns}; this has {', '.join(row)}")
    sound = _sound(row[AUDIO], rate)
    if mel is None:
        return [sound]
    mel.load_audio(raw_audio=sound.mean(axis=0))
    return [mel.audio_slice_to_image(index) for index in range(max(1, mel.get_number_of_slices()))]


def _sampling_rate(pipeline: DiffusionPipeline) -> int | None:
    """The sampling rate of the sounds that a pipeline decodes, in Hz."""
    settings = [getattr(part, "config", {}) for part in networks(pipeline).values() if hasattr(part, "decode")]
    rates = [getattr(config, name, None) for config in settings for name in ("sampling_rate", "sample_rate")]
    return next((int(rate) for rate in rates if rate), None)


def _frame(frame: Any) -> Image.Image:
    """A frame of a video: a picture, or levels of 8 bits, [height, width, 3] in an array or [3, height, width]."""
    if isinstance(frame, Image.Image):
        return frame
    levels = np.asarray(frame)
    if levels.ndim != 3 or levels.dtype != np.uint8:
        raise FinetuningError(f"a frame of {levels.dtype} {levels.shape} is no picture; give levels of 8 bits in RGB")
    return Image.fromarray(levels if levels.shape[-1] == 3 else levels.transpose(1, 2, 0))


def _sound(audio: Any, rate: int) -> np.ndarray:
    """Channels [channels, time] at a sampling rate, from a file or from what the `datasets` library decoded."""
    if isinstance(audio, (str, Path)):
        return np.asarray(read_sound(Path(audio), rate))
    samples = np.atleast_2d(np.asarray(audio["array"], dtype=np.float64))
    return np.asarray(resampled(samples, int(audio["sampling_rate"]), rate))
