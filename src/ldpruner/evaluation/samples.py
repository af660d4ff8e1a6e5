"""Decoded samples as arrays, from a pipeline or from files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageOps

from ldpruner.errors import EvaluationError
from ldpruner.evaluation.media import PICTURES, read_picture, read_sound, rgb
from ldpruner.evaluation.metrics import Pixels
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.sampling import StepCallback, sample_decoded, sample_latents
from ldpruner.scoring.importance import Floats


class Sound(NamedTuple):
    """A sound [channels, time] in -1 to 1, and its sampling rate in Hz; None if the pipeline does not name one."""

    wave: Floats
    sampling_rate: int | None


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

    @property
    def samples(self) -> list[Any]:
        """Each decoded sample, of which a caller may change anything.

        A `Sound` where there are sounds; else an RGB picture of PIL, or of a video the list of its frames; nothing
        where nothing is decoded.
        """
        if self.sounds is not None:
            return [Sound(wave.copy(), self.sampling_rate) for wave in self.sounds]
        if self.pictures is None:
            return []
        videos = [[Image.fromarray(frame) for frame in video] for video in self.pictures]
        return [video if len(video) > 1 else video[0] for video in videos]


def sample_batch(
    pipeline: DiffusionPipeline,
    probe: Probe,
    indices: Sequence[int],
    *,
    decoded: bool = True,
    on_step_end: StepCallback | None = None,
) -> SampleBatch:
    """Samples these indices of a probe in one batch. Pictures and sounds are there only if `decoded`.

    `on_step_end` is called with the latents after each step. If it raises StopPipeline, nothing is decoded.
    """
    latents, result = (
        sample_decoded(pipeline, probe, indices, on_step_end)
        if decoded
        else (sample_latents(pipeline, probe, indices, on_step_end), None)
    )
    sounds = getattr(result, "audios", None)
    prompts = [probe.arguments(pipeline, [index]).get("prompt") for index in indices]
    return SampleBatch(
        latents=latents.double().cpu().numpy(),
        pictures=_pictures(result),
        sounds=tuple(map(_wave, sounds)) if sounds is not None else None,
        sampling_rate=_sampling_rate(pipeline),
        prompts=tuple(prompt for prompt in prompts if isinstance(prompt, str)),
    )


def _pictures(result: Any) -> Pixels | None:
    images, videos = getattr(result, "images", None), getattr(result, "frames", None)
    if images is not None:
        videos = [[image] for image in images]
    return np.stack([np.stack(list(map(_pixels, video))) for video in videos]) if videos is not None else None


def _pixels(image: Any) -> Pixels:
    """[height, width, 3] from a picture, or from an array [height, width, channels] in 0 to 1."""
    if not isinstance(image, Image.Image):
        levels = (np.clip(np.asarray(image, dtype=np.float32), 0, 1) * 255).round().astype(np.uint8)
        image = Image.fromarray(levels.squeeze())
    return np.asarray(rgb(image))


def _wave(sound: Any) -> Floats:
    wave = sound.float().cpu().numpy() if isinstance(sound, torch.Tensor) else np.asarray(sound)
    return np.atleast_2d(wave.astype(np.float64))


def _sampling_rate(pipeline: DiffusionPipeline) -> int | None:
    """The sampling rate in Hz that the configuration of some component names."""
    configs = [part.config for part in pipeline.components.values() if hasattr(part, "config")]
    rates = [getattr(config, name, None) for config in configs for name in ("sampling_rate", "sample_rate")]
    return next((rate for rate in rates if isinstance(rate, int)), None)


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
