"""Pictures and sounds in a folder."""

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
    """Pictures or sounds in a folder and those inside it.

    Attributes:
        path: the folder.
        files: all of one kind, in the order of their names.
    """

    path: Path
    files: tuple[Path, ...]

    @functools.cached_property
    def digest(self) -> str:
        """What tells these files from others: a hash of their contents."""
        found = hashlib.blake2b(digest_size=16)
        for path in self.files:
            found.update(hashlib.blake2b(path.read_bytes()).digest())
        return found.hexdigest()


def find_media(path: Path | str) -> Folder:
    """The pictures of a folder, or its sounds if it holds no picture.

    Raises:
        DataError: there are neither.
    """
    folder = Path(path)
    files = sorted(one for one in folder.rglob("*") if one.is_file())
    for endings in (PICTURES, SOUNDS):
        if found := tuple(one for one in files if one.suffix.lower() in endings):
            return Folder(folder, found)
    raise DataError(
        f"no pictures or sounds in {str(path)!r}; give a folder of {', '.join((*PICTURES, *SOUNDS))} files"
    )


def read_picture(path: Path) -> Image.Image:
    """A picture in colour, upright as its camera held it.

    Raises:
        DataError: it is broken.
    """
    try:
        with Image.open(path) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {one_line(error)}") from error


def read_sound(path: Path, rate: int | None = None) -> Floats:
    """A sound [channels, time] in -1 to 1, at a sampling rate in Hz, or at its own.

    Raises:
        DataError: it is broken, or soundfile is missing.
    """
    try:
        import soundfile  # type: ignore[import-untyped]
    except ImportError as error:
        raise DataError(
            'reading sounds needs soundfile, which is not installed; pip install "ld-pruner[audio]"'
        ) from error
    try:
        wave, found = soundfile.read(path, always_2d=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"cannot read {path}: {one_line(error)}") from error
    return resampled(wave.T, found, rate or found)


def resampled(sound: Floats, rate: int, wanted: int) -> Floats:
    """A sound [channels, time] at another rate, in Hz."""
    return sound if rate == wanted else np.asarray(scipy.signal.resample_poly(sound, wanted, rate, axis=1))
