"""Objectives: noisy latents, and what a denoiser predicts."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler

from ldpruner.finetuning.objectives import objective_of, random_levels
from tests.families import FAMILIES


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_one_scheduler_step_with_the_target_gives_the_clean_latents(prediction: str) -> None:
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(1)
    clean, noise = torch.randn(2, 1, 4, 4, 4).unbind(0)
    noisy, target, times = objective_of(scheduler).add_noise(clean, noise, torch.tensor([0.5]))
    torch.testing.assert_close(scheduler.step(target, int(times), noisy).prev_sample, clean, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["cogvideox", "stable-diffusion-euler", "stable-diffusion-pndm", "hunyuan-dit"])
def test_noise_is_as_strong_as_the_schedulers(name: str) -> None:
    scheduler: Any = FAMILIES[name].pipeline().components["scheduler"]
    clean, times = torch.ones(3, 1), torch.tensor([100, 500, 900])
    noisy, _, timesteps = objective_of(scheduler).add_noise(clean, torch.zeros(3, 1), (times + 0.5) / 1000)
    assert torch.equal(timesteps, times)
    torch.testing.assert_close(noisy.flatten() ** 2, scheduler.alphas_cumprod[times].float())


@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_a_schedule_that_only_its_scheduler_has_is_followed() -> None:
    scheduler = HeunDiscreteScheduler(beta_schedule="exp", prediction_type="sample")
    clean, times = torch.ones(3, 1), torch.tensor([100, 500, 900])
    noisy, target, _ = objective_of(scheduler).add_noise(clean, torch.zeros(3, 1), (times + 0.5) / 1000)
    torch.testing.assert_close(noisy.flatten() ** 2, scheduler.alphas_cumprod[times])
    assert torch.equal(target, clean)


def test_flow_matching_follows_a_straight_path() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    clean, noise = torch.randn(2, 2, 4, 4).unbind(0)
    noisy, target, times = objective_of(scheduler).add_noise(clean, noise, torch.tensor([0.2, 0.5]))
    share = (times / 1000)[:, None, None]
    torch.testing.assert_close(share.flatten(), torch.tensor([0.6 / 1.4, 0.75]))
    torch.testing.assert_close(noisy - share * target, clean)


def test_epsilon_errors_are_weighted_by_one_over_the_signal_up_to_a_limit() -> None:
    times = torch.arange(1000)
    weights = objective_of(DDIMScheduler()).weights(times)
    signal = DDIMScheduler().alphas_cumprod.sqrt().clamp(min=0.01)
    torch.testing.assert_close(weights / weights[0], signal[0] / signal)
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0))
    without_signal = objective_of(DDIMScheduler(rescale_betas_zero_snr=True)).weights(times)
    assert without_signal[-1] == without_signal.max() <= 100 * without_signal.min()


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler(prediction_type="v_prediction"), FlowMatchEulerDiscreteScheduler(shift=3.0)]
)
def test_velocity_errors_have_equal_weights(scheduler: Any) -> None:
    assert objective_of(scheduler).weights(torch.tensor([0, 500, 999])).tolist() == [1, 1, 1]


def test_levels_are_stratified() -> None:
    levels = random_levels(8, torch.Generator().manual_seed(0))
    assert (levels.sort().values * 8).long().tolist() == list(range(8))
