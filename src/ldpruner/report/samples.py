"""Samples of a run folder as data URIs, as a page holds them."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io.wavfile
import scipy.signal
from PIL import Image

from ldpruner.errors import RunStoreError, one_line
from ldpruner.evaluation.gallery import PICTURE, SOUND, Stage, read_frames, read_gallery
from ldpruner.scoring.importance import Floats

MAX_BYTES = 6 * 2**20  # of all samples of a page
MAX_SIDE = 512  # pixels of a picture on the page
QUALITY = 85
MAX_WAVE_BYTES = 2**18  # a longer sound is compressed, if soundfile is there
SPECTROGRAM = (320, 96)  # pixels
RANGE_DB = 80
COLOURS = np.array([(9, 9, 40), (90, 20, 120), (200, 60, 90), (250, 160, 60), (252, 250, 200)])  # quiet to loud


@dataclass(frozen=True)
class Sample:
    """One seed.

    Attributes:
        caption: its prompt, or its seed.
        is_sound: whether it is played, not shown.
        media: a data URI for each pipeline.
        spectrograms: a picture for each sound.
    """

    caption: str
    is_sound: bool
    media: dict[str, str]
    spectrograms: dict[str, str] = field(default_factory=dict)

    def of(self, names: Mapping[str, str]) -> "Sample":
        """The same seed of some pipelines, under other names."""
        media, pictures = ({names[name]: part[name] for name in names if name in part} for part in self._parts)
        return replace(self, media=media, spectrograms=pictures)

    def joined(self, other: "Sample") -> "Sample":
        """The same seed of these pipelines and others."""
        media, pictures = ({**own, **more} for own, more in zip(self._parts, other._parts, strict=True))
        return replace(self, media=media, spectrograms=pictures)

    @property
    def _parts(self) -> tuple[dict[str, str], dict[str, str]]:
        return self.media, self.spectrograms


@dataclass(frozen=True)
class Samples:
    """What the page shows and plays.

    Attributes:
        stages: the pipelines.
        shown: the first samples, as many as a page can hold.
        count: of all samples of the folder.
    """

    stages: tuple[str, ...] = ()
    shown: tuple[Sample, ...] = ()
    count: int = 0


def read_samples(folder: Path, limit: int = MAX_BYTES) -> Samples:
    """The samples of a run; none if there are none.

    Args:
        limit: bytes of all of them.

    Raises:
        RunStoreError: they cannot be read.
    """
    gallery = read_gallery(folder)
    if gallery is None:
        return Samples()
    files = gallery.files(folder)
    shown: list[Sample] = []
    for caption, paths in zip(gallery.captions, files, strict=True):
        if not paths:
            continue
        sample = _sample(caption, paths)
        limit -= sum(map(len, (*sample.media.values(), *sample.spectrograms.values())))
        if limit < 0 and shown:
            break
        shown.append(sample)
    return Samples(gallery.rows, tuple(shown), sum(map(bool, files)))


def _sample(caption: str, paths: Mapping[Stage, Path]) -> Sample:
    try:
        if all(path.suffix == SOUND for path in paths.values()):
            return _sound(caption, paths)
        pictures = {str(stage): _picture(path) for stage, path in paths.items()}
    except (OSError, ValueError) as error:
        raise RunStoreError(f"cannot read {next(iter(paths.values()))}: {one_line(error)}; run again") from error
    return Sample(caption, False, pictures)


def _picture(path: Path) -> str:
    """A picture, made smaller if need be; a video as it is."""
    if path.suffix != PICTURE:
        return _uri("image/webp", path.read_bytes())
    picture = Image.fromarray(read_frames(path)[0])
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return _webp(picture)


def _sound(caption: str, paths: Mapping[Stage, Path]) -> Sample:
    sounds = {str(stage): _read_wave(path) for stage, path in paths.items()}
    levels = {stage: _levels(rate, wave) for stage, (rate, wave) in sounds.items()}
    loudest = max(float(level.max()) for level in levels.values())
    return Sample(
        caption,
        True,
        {str(stage): _player(path, *sounds[stage]) for stage, path in paths.items()},
        {stage: _webp(_spectrogram(level - loudest)) for stage, level in levels.items()},
    )


def _read_wave(path: Path) -> tuple[int, Floats]:
    """The sampling rate in Hz, and a sound [time, channels] in -1 to 1."""
    rate, wave = scipy.io.wavfile.read(path)
    return rate, np.asarray(wave, dtype=np.float64).reshape(len(wave), -1) / np.iinfo(np.int16).max


def _player(path: Path, rate: int, wave: Floats) -> str:
    """The sound as it is, or as MP3 if it is long and soundfile is installed."""
    if path.stat().st_size <= MAX_WAVE_BYTES or find_spec("soundfile") is None:
        return _uri("audio/wav", path.read_bytes())
    import soundfile

    content = io.BytesIO()
    soundfile.write(content, wave, rate, format="MP3")
    return _uri("audio/mpeg", content.getvalue())


def _levels(rate: int, wave: Floats) -> Floats:
    """[frequencies, times] levels in decibels."""
    samples = min(len(wave), 512)
    _, _, power = scipy.signal.spectrogram(wave.mean(1), rate, nperseg=samples, noverlap=samples // 2)
    return np.asarray(10 * np.log10(power + 1e-12))


def _spectrogram(levels: Floats) -> Image.Image:
    """A picture of levels of at most 0 dB: time to the right, low frequencies at the bottom."""
    shares = 1 + np.clip(levels[::-1], -RANGE_DB, 0) / RANGE_DB
    places = np.linspace(0, 1, len(COLOURS))
    pixels = np.stack([np.interp(shares, places, channel) for channel in COLOURS.T], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8)).resize(SPECTROGRAM, Image.Resampling.BILINEAR)


def _webp(picture: Any) -> str:
    content = io.BytesIO()
    picture.save(content, "WEBP", quality=QUALITY)
    return _uri("image/webp", content.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
