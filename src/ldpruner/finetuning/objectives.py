"""The training objective of a denoiser: how noise is added to latents, and what the denoiser predicts."""

from typing import Any, TypeAlias

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from ldpruner.errors import FinetuningError

MAX_WEIGHT = 100.0  # of 1/alpha, which grows without limit as the signal vanishes
DISTILLED = ("LCM", "TCD")  # their denoisers were trained to jump, not to predict noise


class Diffusion:
    """Epsilon-, v- or sample-prediction under a beta schedule (Ho et al. 2020; Salimans and Ho 2022).

    With alpha the share of the signal, an error in epsilon is one in velocity that is 1/alpha times as large. So a
    plain epsilon loss hardly counts errors of the first steps, which decide the colours. The SNR weight of 1/alpha is
    halfway to a velocity loss, whose weight would be its square.
    """

    def __init__(self, scheduler: Any) -> None:
        # its betas are not used: some schedulers shift them, or have a schedule of their own
        self.scheduler: Any = DDPMScheduler.from_config(scheduler.config, beta_schedule="linear", trained_betas=None)
        self.scheduler.alphas_cumprod = scheduler.alphas_cumprod
        alphas = self.scheduler.alphas_cumprod.float().sqrt()
        is_epsilon = self.scheduler.config.prediction_type == "epsilon"
        weights = (1 / alphas).clamp(max=MAX_WEIGHT) if is_epsilon else torch.ones_like(alphas)
        self._weights = weights / weights.mean()

    def add_noise(self, clean: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Adds noise to latents [batch, ...] at levels in 0 to 1, [batch].

        Returns:
            the noisy latents, the target of the prediction, and the scheduler's timesteps [batch].
        """
        count, prediction = self.scheduler.config.num_train_timesteps, self.scheduler.config.prediction_type
        times = (levels * count).long().clamp(max=count - 1)
        targets = {"epsilon": noise, "sample": clean}
        target = targets[prediction] if prediction in targets else self.scheduler.get_velocity(clean, noise, times)
        return self.scheduler.add_noise(clean, noise, times), target, times

    def weights(self, times: Tensor) -> Tensor:
        """SNR weights of the loss at timesteps, [batch]: 1 on average over all levels."""
        return self._weights[times]


class Flow:
    """The velocity of a straight path from latents to noise (Lipman et al. 2023; Liu et al. 2023).

    Levels are shifted towards noise as the scheduler shifts its own (Esser et al. 2024, equation 23).
    """

    def __init__(self, scheduler: Any) -> None:
        config = scheduler.config
        self.count = config.num_train_timesteps
        self.shift = float(getattr(config, "shift", None) or getattr(config, "flow_shift", None) or 1)

    def add_noise(self, clean: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sigmas = self.shift * levels / (1 + (self.shift - 1) * levels)
        share = sigmas.reshape(-1, *[1] * (clean.ndim - 1))
        return (1 - share) * clean + share * noise, noise - clean, sigmas * self.count

    def weights(self, times: Tensor) -> Tensor:
        return torch.ones(len(times))


Objective: TypeAlias = Diffusion | Flow


def objective_of(scheduler: Any) -> Objective:
    """The objective that belongs to a pipeline's scheduler.

    Raises:
        FinetuningError: it is not supported.
    """
    name, config = type(scheduler).__name__, scheduler.config
    prediction = getattr(config, "prediction_type", "epsilon")
    if "FlowMatch" in name or prediction == "flow_prediction" or getattr(config, "use_flow_sigmas", False):
        return Flow(scheduler)
    has_betas = "beta_schedule" in config and getattr(config, "timestep_type", "discrete") == "discrete"
    if not has_betas or name.startswith(DISTILLED) or prediction not in ("epsilon", "v_prediction", "sample"):
        raise FinetuningError(
            f"{name} (prediction_type {prediction!r}) has an objective that is not supported; supported are epsilon, "
            "v_prediction and sample under a beta schedule, and flow matching"
        )
    return Diffusion(scheduler)


def random_levels(batch: int, generator: torch.Generator) -> Tensor:
    """Noise levels in 0 to 1, [batch], stratified, so that the loss of a step hangs less on the levels it got."""
    strata = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    return strata[torch.randperm(batch, generator=generator)]
