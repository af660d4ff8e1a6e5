"""Decoded samples of pipelines as files to look at and to listen to: pictures, sounds, moving pictures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io.wavfile
from diffusers import DiffusionPipeline
from PIL import Image

from ldpruner.errors import StorageError
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import run_pipeline

GAP = 4  # pixels between pictures
SMALLEST = 128  # pixels of a picture's side on a sheet; smaller ones are enlarged
LOUDEST = 32767  # of 16 bits


def write_samples(pipelines: Mapping[str, DiffusionPipeline], probe: Probe, count: int, folder: Path) -> list[Path]:
    """Writes the first samples of a probe, decoded, of several pipelines on the same seeds.

    Pictures of all pipelines go on one sheet, a row for each; sounds are files of their own, `0-before.wav`; of
    videos the sheet moves. `samples.json` says which seed and prompt made which.

    Returns:
        the files, `samples.json` left out; empty if the pipelines give none of these.

    Raises:
        StorageError: the folder cannot be written.
    """
    drawn = probe.sample_settings()[:count]
    results = {name: [_decoded(one, probe, index) for index in range(len(drawn))] for name, one in pipelines.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        rows = [[frames for one in row for frames in frames_of(one)] for row in results.values()]
        written = _write_sheet(rows, folder / "-".join(pipelines))
        for name, pipeline in pipelines.items():
            written += _write_sounds(name, results[name], sampling_rate(pipeline), folder)
        listing = {"rows": list(pipelines), "samples": drawn}
        (folder / "samples.json").write_text(json.dumps(listing, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error
    return written


def _decoded(pipeline: DiffusionPipeline, probe: Probe, index: int) -> Any:
    """What a whole call returns for one sample: one at a time, as decoding takes more memory than denoising."""
    return run_pipeline(pipeline, probe.without("output_type").arguments(pipeline, [index]))


def frames_of(result: Any) -> list[list[Image.Image]]:
    """For each sample its frames, one where it is a picture."""
    images = getattr(result, "images", None)
    if images is not None:
        return [[_picture(one)] for one in images]
    videos = getattr(result, "frames", None)
    return [[_picture(frame) for frame in video] for video in videos] if videos is not None else []


def _picture(image: Any) -> Image.Image:
    """An image as it is, or made from an array [height, width, channels] in 0 to 1."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    levels = (np.clip(np.asarray(image, dtype=np.float32), 0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(levels.squeeze()).convert("RGB")


def _write_sheet(rows: Sequence[list[list[Image.Image]]], path: Path) -> list[Path]:
    if not all(rows):
        return []
    length = max(len(frames) for row in rows for frames in row)
    sheets = [_sheet(_at(rows, time)) for time in range(length)]
    if length == 1:
        target = path.with_suffix(".png")
        sheets[0].save(target)
    else:
        target = path.with_suffix(".gif")
        sheets[0].save(target, save_all=True, append_images=sheets[1:], duration=125, loop=0)
    return [target]


def _at(rows: Sequence[list[list[Image.Image]]], time: int) -> list[list[Image.Image]]:
    return [[frames[min(time, len(frames) - 1)] for frames in row] for row in rows]


def _sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """One picture of several rows of images of one size."""
    scale = max(1, SMALLEST // max(rows[0][0].size))
    width, height = (scale * side for side in rows[0][0].size)
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP), "white")
    for top, row in enumerate(rows):
        for left, image in enumerate(row):
            enlarged = image.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left * (width + GAP), top * (height + GAP)))
    return sheet


def _write_sounds(name: str, results: Sequence[Any], rate: int | None, folder: Path) -> list[Path]:
    """Sounds [1, channels, time] or [1, time] in -1 to 1 as 16-bit files."""
    sounds = [result.audios[0] for result in results if getattr(result, "audios", None) is not None]
    written = []
    for index, sound in enumerate(sounds if rate is not None else ()):
        wave = np.atleast_2d(np.asarray(sound, dtype=np.float32)).T
        path = folder / f"{index}-{name}.wav"
        scipy.io.wavfile.write(path, rate, (np.clip(wave, -1, 1) * LOUDEST).astype(np.int16))
        written.append(path)
    return written


def sampling_rate(pipeline: DiffusionPipeline) -> int | None:
    """Sound samples a second, as the component that makes the sound says."""
    configs = [part.config for part in pipeline.components.values() if hasattr(part, "config")]
    rates = [getattr(config, name, None) for config in configs for name in ("sampling_rate", "sample_rate")]
    return next((rate for rate in rates if isinstance(rate, int)), None)
