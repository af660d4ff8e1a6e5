"""Samples as they are judged: latents, pictures and sounds, drawn by a pipeline or read from a folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageOps

from ldpruner.errors import EvaluationError, NonFiniteLatents
from ldpruner.evaluation.media import PICTURES, read_picture, read_sound
from ldpruner.evaluation.metrics import Pixels
from ldpruner.evaluation.samples import frames_of, sampling_rate
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.sampling import draw_decoded, draw_latents
from ldpruner.scoring.importance import Floats


@dataclass(frozen=True)
class SampleBatch:
    """Some samples; None is what is not known of them.

    Attributes:
        latents: [samples, channels, ...].
        pictures: [samples, frames, height, width, 3], one frame unless they are videos.
        sounds: of each sample [channels, time], in -1 to 1.
        sampling_rate: of the sounds, in Hz.
        prompts: of each sample; empty if the pipeline takes none.
    """

    latents: Floats | None = None
    pictures: Pixels | None = None
    sounds: tuple[Floats, ...] | None = None
    sampling_rate: int | None = None
    prompts: tuple[str, ...] = ()


def draw(pipeline: DiffusionPipeline, probe: Probe, samples: Sequence[int], *, decoded: bool = True) -> SampleBatch:
    """Draws the samples of these indices in one batch; what they look and sound like only if `decoded`.

    Raises:
        NonFiniteLatents: they are not numbers.
    """
    latents, result = (
        draw_decoded(pipeline, probe, samples) if decoded else (draw_latents(pipeline, probe, samples), None)
    )
    if not bool(torch.isfinite(latents).all()):
        raise NonFiniteLatents(f"{type(pipeline).__name__} draws latents that are not finite; prune less of it")
    videos = frames_of(result)
    sounds = getattr(result, "audios", None)
    return SampleBatch(
        latents=latents.double().cpu().numpy(),
        pictures=np.stack([np.stack([np.asarray(frame) for frame in video]) for video in videos]) if videos else None,
        sounds=tuple(np.atleast_2d(_array(sound)) for sound in sounds) if sounds is not None else None,
        sampling_rate=sampling_rate(pipeline),
        prompts=tuple(text for index in samples if isinstance(text := _prompt(pipeline, probe, index), str)),
    )


def _array(sound: Any) -> Floats:
    return (sound.float().cpu().numpy() if isinstance(sound, torch.Tensor) else np.asarray(sound)).astype(np.float64)


def _prompt(pipeline: DiffusionPipeline, probe: Probe, index: int) -> Any:
    return probe.arguments(pipeline, [index]).get("prompt")


def read_samples(files: Sequence[Path], like: SampleBatch) -> SampleBatch:
    """Reads pictures, cut and scaled to the size of drawn ones, or sounds, cut to the length of drawn ones.

    Raises:
        DataError: a file is broken.
        EvaluationError: the pipeline draws something else.
    """
    is_picture = files[0].suffix.lower() in PICTURES
    kind, drawn = ("pictures", like.pictures) if is_picture else ("sounds", like.sounds)
    if drawn is None or (not is_picture and like.sampling_rate is None):
        raise EvaluationError(f"{files[0].parent} holds {kind}, but the pipeline draws none; give other data")
    if like.pictures is not None and is_picture:
        return SampleBatch(pictures=np.stack([_picture(path, like.pictures.shape[2:4]) for path in files]))
    return SampleBatch(sounds=tuple(_sound(path, like) for path in files), sampling_rate=like.sampling_rate)


def _picture(path: Path, size: tuple[int, ...]) -> Pixels:
    """One picture as a video of one frame: [1, height, width, 3]."""
    height, width = size
    return np.asarray(ImageOps.fit(read_picture(path), (width, height), Image.Resampling.LANCZOS))[None]


def _sound(path: Path, like: SampleBatch) -> Floats:
    longest = max(sound.shape[1] for sound in like.sounds or ())
    return read_sound(path, like.sampling_rate)[:, :longest]
