"""Picture and sound files of a folder."""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.signal
from PIL import Image, ImageOps

from ldpruner.errors import DataError, one_line
from ldpruner.scoring.importance import Floats

PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
SOUNDS = (".flac", ".ogg", ".wav")


@dataclass(frozen=True)
class Folder:
    """A folder, and its files of one kind, those in subfolders included, sorted by path."""

    path: Path
    files: tuple[Path, ...]

    @functools.cached_property
    def digest(self) -> str:
        """A hash of the contents of all files."""
        digest = hashlib.blake2b(digest_size=16)
        for path in self.files:
            digest.update(hashlib.blake2b(path.read_bytes()).digest())
        return digest.hexdigest()


def find_media(path: Path | str) -> Folder:
    """The pictures of a folder, or its sounds if it holds no picture.

    Raises:
        DataError: there are neither.
    """
    folder = Path(path)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for suffixes in (PICTURES, SOUNDS):
        if matching := tuple(file for file in files if file.suffix.lower() in suffixes):
            return Folder(folder, matching)
    raise DataError(
        f"no pictures or sounds in {str(path)!r}; give a folder of {', '.join((*PICTURES, *SOUNDS))} files"
    )


def read_picture(path: Path) -> Image.Image:
    """Reads a picture in RGB, turned upright by its EXIF orientation.

    Raises:
        DataError: the file is broken.
    """
    try:
        with Image.open(path) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {one_line(error)}") from error


def read_sound(path: Path, rate: int) -> Floats:
    """Reads a sound [channels, time] in -1 to 1, resampled to `rate` Hz.

    Raises:
        DataError: the file is broken, or soundfile is missing.
    """
    try:
        import soundfile  # type: ignore[import-untyped]
    except ImportError as error:
        raise DataError(
            'reading sounds needs soundfile, which is not installed; pip install "ld-pruner[audio]"'
        ) from error
    try:
        wave, own_rate = soundfile.read(path, always_2d=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"cannot read {path}: {one_line(error)}") from error
    return resampled(wave.T, own_rate, rate)


def resampled(sound: Floats, rate: int, target_rate: int) -> Floats:
    """A sound [channels, time] of `rate` Hz at `target_rate` Hz."""
    return sound if rate == target_rate else np.asarray(scipy.signal.resample_poly(sound, target_rate, rate, axis=1))
