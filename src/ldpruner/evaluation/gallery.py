"""Samples in a folder: a file for each pipeline and seed, and all pictures on one sheet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import scipy.io.wavfile
from diffusers import DiffusionPipeline
from PIL import Image, ImageSequence

from ldpruner.errors import RunStoreError, StorageError, one_line
from ldpruner.evaluation.metrics import Pixels
from ldpruner.evaluation.samples import SampleBatch, sample_batch
from ldpruner.evaluation.sheets import sheet
from ldpruner.files import replacing, write_atomic
from ldpruner.pipelines.probe import Probe
from ldpruner.scoring.importance import Floats
from ldpruner.values import Value

Stage: TypeAlias = Literal["original", "pruned", "recovered"]
STAGES: tuple[Stage, ...] = ("original", "pruned", "recovered")
LISTING, SHEET = "samples.json", "sheet"
PICTURE, VIDEO, SOUND = ".png", ".webp", ".wav"
SHOWN_SAMPLES = 8  # of each pipeline
MIN_SIDE = 128  # pixels of a picture on a sheet; smaller pictures are enlarged
MAX_LEVEL = 32767  # of 16-bit sound
QUALITY = 90  # of the frames of a video
FRAME_MS = 125


class Gallery(Value):
    """What `samples.json` says of a folder of samples.

    Attributes:
        rows: the pipelines, in the order of `STAGES`.
        samples: the settings of each sample: its seed, and its prompt if it has one.
    """

    rows: tuple[Stage, ...]
    samples: tuple[dict[str, Any], ...]

    @property
    def captions(self) -> list[str]:
        """The prompt of each sample, or its seed."""
        return [str(sample.get("prompt") or f"seed {sample.get('seed')}") for sample in self.samples]

    def files(self, folder: Path) -> list[dict[Stage, Path]]:
        """For each sample the file of each pipeline; empty for a sample of which a file is missing."""
        files = []
        for index in range(len(self.samples)):
            names = {row: [f"{index}-{row}{ending}" for ending in (SOUND, PICTURE, VIDEO)] for row in self.rows}
            paths = {row: [folder / name for name in names[row] if (folder / name).exists()] for row in self.rows}
            files.append({row: paths[row][0] for row in self.rows} if all(paths.values()) else {})
        return files


def shown_probe(probe: Probe) -> Probe:
    """The probe of the samples that are shown: of seeds that no selection has seen."""
    return probe.replace(seed=probe.seed + 1)


def read_gallery(folder: Path) -> Gallery | None:
    """What a folder of samples holds; None if there is none.

    Raises:
        RunStoreError: the listing cannot be read.
    """
    listing = folder / LISTING
    if not listing.exists():
        return None
    try:
        return Gallery.model_validate_json(listing.read_bytes())
    except (OSError, ValueError) as error:
        raise RunStoreError(f"cannot read {listing}: {one_line(error)}; run again") from error


def write_samples(
    pipelines: Mapping[Stage, DiffusionPipeline], probe: Probe, count: int, folder: Path, *, keep: bool = False
) -> list[Path]:
    """Writes the first samples of a probe, decoded, of several pipelines on the same seeds.

    Each sample is a file, such as `0-pruned.png`; videos are animated WebP, sounds are WAV. `sheet.png`, or
    `sheet.webp` for videos, has all pictures, a row for each pipeline, under their prompts. `samples.json` lists their
    seeds and prompts.

    Args:
        keep: whether other pipelines' samples of the same seeds and prompts stay.

    Returns:
        the sheet, if there is one, and the files of the samples.

    Raises:
        StorageError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error
    samples = tuple(probe.sample_settings()[:count])
    earlier = read_gallery(folder) if keep else None
    kept = set(earlier.rows) if earlier is not None and earlier.samples == samples else set()
    for name, pipeline in pipelines.items():
        for index in range(len(samples)):  # one at a time, as decoding takes more memory than denoising
            write_sample(sample_batch(pipeline, probe, [index]), folder / f"{index}-{name}")
    gallery = Gallery(rows=tuple(stage for stage in STAGES if stage in kept | set(pipelines)), samples=samples)
    write_atomic(folder / LISTING, gallery.model_dump_json(indent=2) + "\n")
    files = [path for sample in gallery.files(folder) for path in sample.values()]
    has_pictures = any(path.suffix != SOUND for path in files)
    return [_write_sheet(gallery, folder), *files] if has_pictures else files


def write_sample(batch: SampleBatch, path: Path, min_side: int = 1) -> Path | None:
    """Writes the first sample of a batch: its sound as WAV, else its picture as PNG, or its video as animated WebP.

    Args:
        batch: its samples are decoded.
        path: of the file; its ending is replaced.
        min_side: pixels; a smaller picture is enlarged by a whole number.

    Returns:
        the file; None if there is neither a sound nor a picture.
    """
    if batch.sounds is not None and batch.sampling_rate is not None:
        return _write_sound(batch.sounds[0], batch.sampling_rate, path.with_suffix(SOUND))
    return _write_frames(_enlarged(batch.pictures[0], min_side), path) if batch.pictures is not None else None


def _enlarged(pictures: Pixels, min_side: int) -> Pixels:
    """[..., height, width, 3] enlarged by a whole number, so that the longer side is at most this long."""
    scale = max(1, min_side // max(pictures.shape[-3:-1]))
    return pictures.repeat(scale, axis=-3).repeat(scale, axis=-2)


def _write_frames(frames: Pixels, path: Path) -> Path:
    """Writes frames [frames, height, width, 3] as a picture, or as an animation of several."""
    first, *others = [Image.fromarray(frame) for frame in frames]
    animation: dict[str, Any] = {
        "save_all": True,
        "append_images": others,
        "duration": FRAME_MS,
        "loop": 0,
        "quality": QUALITY,
    }
    target = path.with_suffix(VIDEO if others else PICTURE)
    with replacing(target) as partial:
        first.save(partial, **(animation if others else {}))
    return target


def _write_sheet(gallery: Gallery, folder: Path) -> Path:
    """Writes the pictures of a folder as a sheet with a row for each pipeline."""
    shown = [place for place, files in enumerate(gallery.files(folder)) if files]
    files = [gallery.files(folder)[place] for place in shown]
    samples = np.stack([[read_frames(sample[row]) for sample in files] for row in gallery.rows])
    captions = [gallery.captions[place] for place in shown]
    return _write_frames(sheet(_enlarged(samples, MIN_SIDE), gallery.rows, captions), folder / SHEET)


def read_frames(path: Path) -> Pixels:
    """[frames, height, width, 3] of a picture or an animation.

    Raises:
        RunStoreError: it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture)])
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise RunStoreError(f"cannot read {path}: {one_line(error)}; run again") from error


def _write_sound(sound: Floats, rate: int, path: Path) -> Path:
    """Writes a sound [channels, time] in -1 to 1 as a 16-bit file."""
    with replacing(path) as partial:
        scipy.io.wavfile.write(partial, rate, (np.clip(sound.T, -1, 1) * MAX_LEVEL).astype(np.int16))
    return path
