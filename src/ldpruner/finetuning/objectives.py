"""What a denoiser learns: latents noised to a random level, and what it shall find in them."""

from typing import Any, Protocol

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from ldpruner.errors import FinetuningError

LARGEST = 100.0  # of 1/alpha: without any signal there is no end to it
DISTILLED = ("LCM", "TCD")  # their denoisers were taught to jump, not to find noise


class Objective(Protocol):
    """What noise does to latents, and what is to be found in them."""

    def noised(self, clean: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [batch, ...] noised to levels in 0 to 1, [batch].

        Returns:
            the noisy latents, what is to be found in them, and the scheduler's timesteps [batch].
        """

    def weights(self, times: Tensor) -> Tensor:
        """How much errors at timesteps count, balanced, [batch]: 1 on average over all levels."""


class Diffusion:
    """Noise, velocity or the clean latents, under a schedule of betas (Ho et al. 2020; Salimans and Ho 2022).

    Where alpha is the signal's share of the noisy latents, an error in the noise is one in the velocity that is
    1/alpha times as large. So small errors of the first steps, which decide the colours, hardly count in a plain loss
    of noise. Balanced, squared errors count 1/alpha times: halfway to a loss of the velocity.
    """

    def __init__(self, scheduler: Any) -> None:
        known: Any = DDPMScheduler.from_config(scheduler.config)
        known.alphas_cumprod = scheduler.alphas_cumprod  # some shift them in ways of their own
        self.scheduler, self.prediction = known, known.config.prediction_type
        alphas = known.alphas_cumprod.float().sqrt()
        scale = (1 / alphas).clamp(max=LARGEST) if self.prediction == "epsilon" else torch.ones_like(alphas)
        self._weights = scale / scale.mean()

    def noised(self, clean: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count = self.scheduler.config.num_train_timesteps
        times = (levels * count).long().clamp(max=count - 1)
        targets = {"epsilon": noise, "sample": clean}
        if self.prediction not in targets:
            targets[self.prediction] = self.scheduler.get_velocity(clean, noise, times)
        return self.scheduler.add_noise(clean, noise, times), targets[self.prediction], times

    def weights(self, times: Tensor) -> Tensor:
        return self._weights[times]


class Flow:
    """The velocity of a straight path from latents to noise (Lipman et al. 2023; Liu et al. 2023).

    Levels are shifted towards noise as far as the scheduler's own are (Esser et al. 2024, equation 23).
    """

    def __init__(self, scheduler: Any) -> None:
        self.count = scheduler.config.num_train_timesteps
        self.shift = float(
            getattr(scheduler.config, "shift", None) or getattr(scheduler.config, "flow_shift", None) or 1
        )

    def noised(self, clean: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shifted = self.shift * levels / (1 + (self.shift - 1) * levels)
        share = shifted.reshape(-1, *[1] * (clean.ndim - 1))
        return (1 - share) * clean + share * noise, noise - clean, shifted * self.count

    def weights(self, times: Tensor) -> Tensor:
        return torch.ones(len(times))


def objective_of(scheduler: Any) -> Objective:
    """The objective that a pipeline's scheduler steps by.

    Raises:
        FinetuningError: it steps by another.
    """
    name, config = type(scheduler).__name__, scheduler.config
    prediction = getattr(config, "prediction_type", "epsilon")
    if "FlowMatch" in name or prediction == "flow_prediction" or getattr(config, "use_flow_sigmas", False):
        return Flow(scheduler)
    is_known = "beta_schedule" in config and getattr(config, "timestep_type", "discrete") == "discrete"
    if not is_known or name.startswith(DISTILLED) or prediction not in ("epsilon", "v_prediction", "sample"):
        raise FinetuningError(
            f"{name} (prediction_type {prediction!r}) steps by an objective that is not known here; "
            "known are noise, velocity and sample under a schedule of betas, and flow matching"
        )
    return Diffusion(scheduler)


def random_levels(batch: int, generator: torch.Generator) -> Tensor:
    """Noise levels in 0 to 1, [batch], spread evenly: a step's loss does not hang on which it happened to draw."""
    spread = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    return spread[torch.randperm(batch, generator=generator)]
