"""Decoded samples: arrays for metrics, and sheets of pictures, sounds and videos in a folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io.wavfile
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageOps

from ldpruner.errors import EvaluationError, NonFiniteLatents, StorageError
from ldpruner.evaluation.media import PICTURES, read_picture, read_sound
from ldpruner.evaluation.metrics import Pixels
from ldpruner.files import replacing, write_atomic
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import run_pipeline
from ldpruner.pipelines.sampling import sample_decoded, sample_latents
from ldpruner.scoring.importance import Floats

GAP = 4  # pixels between pictures of a sheet
MIN_SIDE = 128  # pixels of a picture on a sheet; smaller pictures are enlarged
MAX_LEVEL = 32767  # of 16-bit sound


@dataclass(frozen=True)
class SampleBatch:
    """Samples of a pipeline, or of a folder; a field is None where there is no such thing.

    Attributes:
        latents: [samples, channels, ...].
        pictures: [samples, frames, height, width, 3]; one frame unless they are videos.
        sounds: for each sample [channels, time] in -1 to 1.
        sampling_rate: of the sounds, in Hz.
        prompts: for each sample; empty if the pipeline takes none.
    """

    latents: Floats | None = None
    pictures: Pixels | None = None
    sounds: tuple[Floats, ...] | None = None
    sampling_rate: int | None = None
    prompts: tuple[str, ...] = ()


def sample_batch(
    pipeline: DiffusionPipeline, probe: Probe, indices: Sequence[int], *, decoded: bool = True
) -> SampleBatch:
    """Samples these indices of a probe in one batch. Pictures and sounds are there only if `decoded`.

    Raises:
        NonFiniteLatents: latents are not finite.
    """
    sample = sample_decoded if decoded else lambda *arguments: (sample_latents(*arguments), None)
    latents, result = sample(pipeline, probe, indices)
    if not bool(torch.isfinite(latents).all()):
        raise NonFiniteLatents(f"{type(pipeline).__name__} samples latents that are not finite; prune less of it")
    videos, sounds = frames_of(result), getattr(result, "audios", None)
    prompts = [probe.arguments(pipeline, [index]).get("prompt") for index in indices]
    return SampleBatch(
        latents=latents.double().cpu().numpy(),
        pictures=np.stack([np.stack([np.asarray(frame) for frame in video]) for video in videos]) if videos else None,
        sounds=tuple(np.atleast_2d(_wave(sound)) for sound in sounds) if sounds is not None else None,
        sampling_rate=sampling_rate(pipeline),
        prompts=tuple(prompt for prompt in prompts if isinstance(prompt, str)),
    )


def _wave(sound: Any) -> Floats:
    return (sound.float().cpu().numpy() if isinstance(sound, torch.Tensor) else np.asarray(sound)).astype(np.float64)


def read_samples(files: Sequence[Path], like: SampleBatch) -> SampleBatch:
    """Reads pictures, scaled and cropped to the size of `like`, or sounds, at its rate and at most of its length.

    Raises:
        DataError: a file is broken.
        EvaluationError: `like` holds samples of another kind.
    """
    is_picture = files[0].suffix.lower() in PICTURES
    if is_picture and like.pictures is not None:
        height, width = like.pictures.shape[2:4]
        fitted = [ImageOps.fit(read_picture(path), (width, height), Image.Resampling.LANCZOS) for path in files]
        return SampleBatch(pictures=np.stack([np.asarray(picture)[None] for picture in fitted]))
    if is_picture or like.sounds is None or like.sampling_rate is None:
        kind = "pictures" if is_picture else "sounds"
        raise EvaluationError(f"{files[0].parent} holds {kind}, but the pipeline samples none; give other data")
    length = max(sound.shape[1] for sound in like.sounds)
    sounds = tuple(read_sound(path, like.sampling_rate)[:, :length] for path in files)
    return SampleBatch(sounds=sounds, sampling_rate=like.sampling_rate)


def write_samples(pipelines: Mapping[str, DiffusionPipeline], probe: Probe, count: int, folder: Path) -> list[Path]:
    """Writes the first samples of a probe, decoded, of several pipelines on the same seeds.

    Pictures of all pipelines are on one sheet, a row for each pipeline; the sheet of videos is animated. Each sound is
    a file of its own, such as `0-before.wav`. `samples.json` lists the seed and prompt of each sample.

    Returns:
        the files without `samples.json`; empty if the pipelines make neither pictures nor sounds.

    Raises:
        StorageError: the folder cannot be written.
    """
    samples = probe.sample_settings()[:count]
    results = {
        name: [_decoded(part, probe, index) for index in range(len(samples))] for name, part in pipelines.items()
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        rows = [[frames for result in row for frames in frames_of(result)] for row in results.values()]
        written = _write_sheet(rows, folder / "-".join(pipelines))
        for name, pipeline in pipelines.items():
            written += _write_sounds(name, results[name], sampling_rate(pipeline), folder)
        listing = {"rows": list(pipelines), "samples": samples}
        write_atomic(folder / "samples.json", json.dumps(listing, indent=2) + "\n")
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error
    return written


def _decoded(pipeline: DiffusionPipeline, probe: Probe, index: int) -> Any:
    """The result of a whole call for one sample: one at a time, as decoding takes more memory than denoising."""
    return run_pipeline(pipeline, probe.without("output_type").arguments(pipeline, [index]))


def frames_of(result: Any) -> list[list[Image.Image]]:
    """The frames of each sample of a pipeline's result; a picture has one."""
    images, videos = getattr(result, "images", None), getattr(result, "frames", None)
    if images is not None:
        return [[_picture(image)] for image in images]
    return [[_picture(frame) for frame in video] for video in videos] if videos is not None else []


def _picture(image: Any) -> Image.Image:
    """An RGB picture from a picture, or from an array [height, width, channels] in 0 to 1."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    levels = (np.clip(np.asarray(image, dtype=np.float32), 0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(levels.squeeze()).convert("RGB")


def _write_sheet(rows: Sequence[list[list[Image.Image]]], path: Path) -> list[Path]:
    """Writes a picture, or an animation where samples have several frames; shorter ones keep their last frame."""
    if not all(rows):
        return []
    length = max(len(frames) for row in rows for frames in row)
    sheets = [
        _sheet([[frames[min(time, len(frames) - 1)] for frames in row] for row in rows]) for time in range(length)
    ]
    target = path.with_suffix(".png" if length == 1 else ".gif")
    animation: dict[str, Any] = (
        {} if length == 1 else {"save_all": True, "append_images": sheets[1:], "duration": 125, "loop": 0}
    )
    with replacing(target) as partial:
        sheets[0].save(partial, **animation)
    return [target]


def _sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """One picture of several rows of images of one size."""
    scale = max(1, MIN_SIDE // max(rows[0][0].size))
    width, height = (scale * side for side in rows[0][0].size)
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP), "white")
    for top, row in enumerate(rows):
        for left, image in enumerate(row):
            enlarged = image.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left * (width + GAP), top * (height + GAP)))
    return sheet


def _write_sounds(name: str, results: Sequence[Any], rate: int | None, folder: Path) -> list[Path]:
    """Writes sounds [1, channels, time] or [1, time] in -1 to 1 as 16-bit files."""
    sounds = [result.audios[0] for result in results if getattr(result, "audios", None) is not None]
    written = []
    for index, sound in enumerate(sounds if rate is not None else ()):
        wave = np.atleast_2d(np.asarray(sound, dtype=np.float32)).T
        path = folder / f"{index}-{name}.wav"
        with replacing(path) as partial:
            scipy.io.wavfile.write(partial, rate, (np.clip(wave, -1, 1) * MAX_LEVEL).astype(np.int16))
        written.append(path)
    return written


def sampling_rate(pipeline: DiffusionPipeline) -> int | None:
    """The sampling rate in Hz that the configuration of some component names."""
    configs = [part.config for part in pipeline.components.values() if hasattr(part, "config")]
    rates = [getattr(config, name, None) for config in configs for name in ("sampling_rate", "sample_rate")]
    return next((rate for rate in rates if isinstance(rate, int)), None)
