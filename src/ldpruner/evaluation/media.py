"""Picture and sound files of a folder.

Whatever a file holds, the outcome is a picture, a sound, or a DataError, and nothing huge is allocated on the way.
"""

import contextlib
import functools
import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.signal
from PIL import Image, ImageOps

from ldpruner.errors import DataError, one_line
from ldpruner.scoring.importance import Floats

PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
SOUNDS = (".flac", ".ogg", ".wav")
FORMATS = ("BMP", "JPEG", "PNG", "WEBP")  # of pictures, whatever their names: other readers of PIL start programs
MAX_LEVEL = 65535  # of 16-bit grey
MAX_SOUND_VALUES = 2**27  # of all channels: 23 minutes of stereo at 48 kHz
SAMPLING_RATES = (1_000, 1_000_000)  # Hz
BLOCK = 2**20  # bytes


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
            contents = hashlib.blake2b()
            with _reading(path), path.open("rb") as file:
                while block := file.read(BLOCK):
                    contents.update(block)
            digest.update(contents.digest())
        return digest.hexdigest()


def find_media(path: Path | str) -> Folder:
    """The pictures of a folder, or its sounds if it holds no picture.

    Raises:
        DataError: there are neither.
    """
    folder = Path(path)
    with _reading(folder):
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
        DataError: the file is broken, or a picture larger than PIL deems safe.
    """
    with _reading(path), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=FORMATS) as opened:
            return rgb(ImageOps.exif_transpose(opened))


def rgb(picture: Image.Image) -> Image.Image:
    """A picture in RGB. PIL itself would clip levels of more than 8 bits, so they are scaled first.

    Integers are 16-bit grey, 0 to 65535, which is how PIL reads PNGs; floating-point levels are 0 to 1.

    Raises:
        DataError: levels are beyond that.
    """
    if picture.mode not in ("I", "F") and not picture.mode.startswith("I;16"):
        return picture.convert("RGB")
    largest = 1 if picture.mode == "F" else MAX_LEVEL
    levels = np.asarray(picture).astype(np.float64)
    if not (np.min(levels) >= 0 and np.max(levels) <= largest):
        seen = f"{levels.min():g} to {levels.max():g}"
        raise DataError(f"a picture of mode {picture.mode} has levels of {seen}; scale them to 0 to {largest}")
    return Image.fromarray((levels / largest * 255).round().astype(np.uint8)).convert("RGB")


def read_sound(path: Path, rate: int) -> Floats:
    """Reads a sound [channels, time] in -1 to 1, resampled to `rate` Hz.

    Raises:
        DataError: the file is broken, too long or empty, or soundfile is missing.
    """
    try:
        import soundfile
    except ImportError as error:
        raise DataError(
            'reading sounds needs soundfile, which is not installed; pip install "ld-pruner[audio]"'
        ) from error
    with _reading(path):
        with soundfile.SoundFile(path) as file:
            _check_sound(file.frames * file.channels, file.samplerate, rate)
            wave, own_rate = file.read(always_2d=True), file.samplerate
        if not wave.size or not np.isfinite(wave).all():
            raise DataError("it has no samples, or some that are not finite")
        return resampled(wave.T, own_rate, rate)


def _check_sound(values: int, own_rate: int, rate: int) -> None:
    """Refuses a sound by its header, before its values are read."""
    low, high = SAMPLING_RATES
    if not low <= own_rate <= high:
        raise DataError(f"a sampling rate of {own_rate} Hz; give {low} to {high} Hz")
    if values * max(1, rate / own_rate) > MAX_SOUND_VALUES:
        raise DataError(f"{values} values are too many for one sound; cut it into shorter ones")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns whatever a file makes of its reader into one line."""
    try:
        yield
    except DataError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    except Exception as error:  # readers of damaged files raise all kinds: SyntaxError, struct.error, ...
        raise DataError(f"cannot read {path}: {one_line(error)}") from error


def resampled(sound: Floats, rate: int, target_rate: int) -> Floats:
    """A sound [channels, time] of `rate` Hz at `target_rate` Hz."""
    return sound if rate == target_rate else np.asarray(scipy.signal.resample_poly(sound, target_rate, rate, axis=1))
