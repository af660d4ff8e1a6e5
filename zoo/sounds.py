"""Spoken digits from a zip in the Hugging Face audiofolder layout, as the mel pictures of an audio pipeline."""

from __future__ import annotations

import io
import wave
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers.pipelines.deprecated.audio_diffusion import Mel
from PIL import Image
from torch import Tensor

from zoo.data import Images, read_rows

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@dataclass(frozen=True)
class Sounds:
    """Recordings of one channel, each an array of samples in -1 to 1, and the digit that each says."""

    waves: tuple[np.ndarray, ...]
    labels: Tensor
    classes: tuple[str, ...]


def read_sounds(archive: Path) -> Sounds:
    """Decode every recording that `metadata.jsonl` inside `archive` lists, in its order."""
    rows = list(read_rows(archive))
    labels = [int(row["label"]) for row, _ in rows]
    waves = tuple(_decode(encoded) for _, encoded in rows)
    return Sounds(waves, torch.tensor(labels), tuple(str(label) for label in sorted(set(labels))))


def _decode(encoded: bytes) -> np.ndarray:
    with wave.open(io.BytesIO(encoded)) as opened:
        return np.frombuffer(opened.readframes(opened.getnframes()), dtype="<i2").astype(np.float32) / 32768


def build_mel() -> Mel:
    """Pictures of 64x64 from 8,191 samples (1.02 s) at 8 kHz, and back."""
    return Mel(x_res=64, y_res=64, sample_rate=8000, n_fft=512, hop_length=128)


def placed(sounds: Sounds, mel: Mel, generator: torch.Generator) -> Images:
    """Mel pictures of all recordings, each at a random place in silence; one too long for a picture is cut."""
    waves = [_placed(samples, mel.slice_size, generator) for samples in sounds.waves]
    return Images(mel_pictures(waves, mel), sounds.labels, sounds.classes)


def _placed(samples: np.ndarray, length: int, generator: torch.Generator) -> np.ndarray:
    room = max(0, length - len(samples))
    before = int(torch.randint(room + 1, (), generator=generator))
    return np.pad(samples[:length], (before, room - before))


def mel_pictures(waves: Iterable[np.ndarray], mel: Mel) -> Tensor:
    """Mel pictures of recordings: bytes, [samples, 1, mel bands, frames]."""
    pictures = []
    for samples in waves:
        mel.load_audio(raw_audio=samples)
        pictures.append(torch.from_numpy(np.array(mel.audio_slice_to_image(0))))
    return torch.stack(pictures)[:, None]


def sounds_of(pixels: Tensor, mel: Mel) -> list[np.ndarray]:
    """The sounds of mel pictures, 8,191 samples each, with phases by Griffin and Lim (1984)."""
    return [mel.image_to_audio(Image.fromarray(picture.numpy())) for picture in pixels[:, 0]]


def write_sounds(waves: Iterable[np.ndarray], folder: Path, rate: int = 8000) -> None:
    """Each recording as loud as 16 bits allow: `sample-0.wav` and so on."""
    for index, samples in enumerate(waves):
        loud = samples / max(np.abs(samples).max(), 1e-6)
        with wave.open(str(folder / f"sample-{index}.wav"), "wb") as opened:
            opened.setparams((1, 2, rate, 0, "NONE", "not compressed"))
            opened.writeframes((loud * 32767).astype("<i2").tobytes())
