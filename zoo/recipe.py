"""What a zoo model is made of and how it is trained, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zoo.training import Schedule


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, beside the data.

    `divergence`, `detail` and `texture` weigh terms of the autoencoder's loss against its absolute error.
    `sampling_steps` and `samples` say how the result is measured.
    """

    name: str
    seed: int
    autoencoder: Mapping[str, Any]
    autoencoder_schedule: Schedule
    divergence: float
    detail: float
    texture: float
    decoder_schedule: Schedule
    denoiser: Mapping[str, Any]
    denoiser_schedule: Schedule
    refinement_schedule: Schedule
    scheduler: Mapping[str, Any]
    judge_schedule: Schedule
    sampling_steps: int
    samples: int
