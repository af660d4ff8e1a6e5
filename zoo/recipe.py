"""What a zoo model is made of and how it is trained, as one frozen value."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ldpruner.finetuning import Training

if TYPE_CHECKING:
    from collections.abc import Mapping

# v-prediction weighs the highest noise levels more than epsilon-prediction; these decide what a sample shows or says.
V_PREDICTION: Mapping[str, Any] = {
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

# the settings of a training that have an effect here, without a teacher and without validation
USED = {
    "max_train_steps",
    "train_batch_size",
    "learning_rate",
    "lr_warmup_steps",
    "lr_scheduler",
    "adam_weight_decay",
    "max_grad_norm",
    "ema_decay",
    "mixed_precision",
    "checkpointing_steps",
    "seed",
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the weights, besides the data.

    Attributes:
        name, seed: of the model; the seed initialises its networks.
        autoencoder, denoiser, scheduler: settings of the diffusers classes.
        kl_weight, detail_weight, texture_weight, perceptual_weight: weights in the autoencoder's loss, relative to the
            absolute error: divergence of the posterior, detail, texture, and distance in the perceptual network.
        autoencoder_training and so on: one for each stage; None where the model has no such stage.
        sampling_steps, samples: with which the result is measured.
        device: where stages are trained.
    """

    name: str
    seed: int
    autoencoder: Mapping[str, Any]
    autoencoder_training: Training
    kl_weight: float
    detail_weight: float
    texture_weight: float
    perceptual_weight: float = 0.0
    perceptual_network_training: Training | None = None
    denoiser: Mapping[str, Any]
    denoiser_training: Training
    refinement_training: Training | None = None
    scheduler: Mapping[str, Any]
    feature_network_training: Training
    sampling_steps: int
    samples: int
    device: str = "cpu"

    def steps(self, stage: str) -> int:
        """Steps that a stage takes; 0 where the model has no such stage."""
        training: Training | None = getattr(self, f"{stage}_training")
        return training.max_train_steps if training else 0

    def to_json(self) -> dict[str, Any]:
        """The recipe as JSON values, without settings of a training that have no effect here."""
        values = {name: getattr(self, name) for name in asdict(self)}
        return {
            name: value.model_dump(mode="json", include=USED) if isinstance(value, Training) else value
            for name, value in values.items()
        }


@dataclass(frozen=True, kw_only=True)
class CaptionedRecipe(Recipe):
    """The recipe of a text-to-image model.

    Attributes:
        styles: of the pictures that it learns.
        text_encoder: settings of its configuration.
        vocabulary_size, max_tokens: of the tokenizer.
        caption_dropout: share of captions that are replaced by the empty one in training.
        min_snr_gamma: bounds how much a low noise level counts in the denoiser's loss.
        guidance: scale of classifier-free guidance of the measured samples.
    """

    styles: tuple[str, ...]
    text_encoder: Mapping[str, Any]
    vocabulary_size: int
    max_tokens: int
    caption_dropout: float
    min_snr_gamma: float
    guidance: float
