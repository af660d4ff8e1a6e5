"""What a zoo model is made of and how it is trained, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zoo.training import Schedule

# Where little is left of a sample it is decided what it shows or says: velocity weighs these levels more than noise.
VELOCITY: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the weights, beside the data.

    `divergence`, `detail`, `texture` and `likeness` weigh terms of the autoencoder's loss against its absolute error;
    the last is how alike images look to the network of the stage perception. Stages are trained on `device`; with
    `bfloat16` products are taken in it. `sampling_steps` and `samples` say how the result is measured. A stage that
    the model goes without has no schedule.
    """

    name: str
    seed: int
    autoencoder: Mapping[str, Any]
    autoencoder_schedule: Schedule
    divergence: float
    detail: float
    texture: float
    likeness: float = 0.0
    perception_schedule: Schedule | None = None
    denoiser: Mapping[str, Any]
    denoiser_schedule: Schedule
    refinement_schedule: Schedule | None = None
    scheduler: Mapping[str, Any]
    judge_schedule: Schedule
    sampling_steps: int
    samples: int
    bfloat16: bool = False
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class CaptionedRecipe(Recipe):
    """The recipe of a model that reads captions.

    Its tokenizer knows at most `words` tokens and reads `length` of a caption. A share `forgotten` of the captions is
    left out in training; `guidance` is how strongly the measured samples follow theirs.
    """

    text_encoder: Mapping[str, Any]
    words: int
    length: int
    forgotten: float
    guidance: float
