"""Running a pipeline and watching it: which network denoises, and how it is called."""

import copy

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

from ldpruner.errors import DenoiserNotFound, LdPrunerError
from ldpruner.pipelines.denoiser import find_denoiser


class Empty(DiffusionPipeline):
    """A pipeline without a network."""

    def __init__(self, scheduler: DDIMScheduler) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler)

    def __call__(self, num_inference_steps: int = 2) -> torch.Tensor:
        self.scheduler.set_timesteps(num_inference_steps)
        sample = torch.zeros(1, 4, 8, 8)
        for step in self.scheduler.timesteps:
            sample = self.scheduler.step(sample, step, sample).prev_sample
        return sample


class Demanding(Empty):
    """A pipeline that needs an argument that nobody knows."""

    def __call__(self, melody: str) -> torch.Tensor:  # type: ignore[override]
        raise ValueError(f"no such\nmelody: {melody}")


@pytest.mark.parametrize(
    ("fixture", "component"), [("tiny", "unet"), ("tiny_text", "unet"), ("tiny_transformer", "transformer")]
)
def test_the_denoiser_is_found(fixture: str, component: str, request: pytest.FixtureRequest) -> None:
    pipeline = request.getfixturevalue(fixture)
    denoiser = find_denoiser(pipeline)
    assert denoiser.component == component
    assert denoiser.module is getattr(pipeline, component)


def test_the_recorded_call_can_be_repeated(tiny: DiffusionPipeline) -> None:
    denoiser = find_denoiser(tiny)
    assert denoiser.rows == 1
    assert torch.equal(denoiser().sample, denoiser().sample)
    assert denoiser().sample.shape == (1, 4, 8, 8)


def test_guidance_makes_two_rows_of_one_sample(tiny_text: DiffusionPipeline) -> None:
    assert find_denoiser(tiny_text).rows == 2
    assert find_denoiser(tiny_text, call={"guidance_scale": 1.0}).rows == 1


def test_another_network_can_be_named(tiny_text: DiffusionPipeline) -> None:
    assert find_denoiser(tiny_text, "text_encoder").module is tiny_text.text_encoder


def test_watching_leaves_nothing_behind(fresh: DiffusionPipeline) -> None:
    before = copy.deepcopy(fresh.unet.state_dict())
    find_denoiser(fresh)
    modules = [module for part in (fresh.unet, fresh.vqvae) for module in part.modules()]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in modules)
    assert "step" not in vars(fresh.scheduler)
    assert all(torch.equal(before[name], weight) for name, weight in fresh.unet.state_dict().items())


def test_a_scheduler_with_a_step_of_the_users_own_keeps_it(fresh: DiffusionPipeline) -> None:
    own = fresh.scheduler.step
    fresh.scheduler.step = own
    find_denoiser(fresh)
    assert vars(fresh.scheduler).get("step") is own


def one_line(error: LdPrunerError, *values: str) -> bool:
    return "\n" not in str(error) and all(value in str(error) for value in values)


def test_a_pipeline_without_a_denoiser_is_told() -> None:
    with pytest.raises(DenoiserNotFound) as caught:
        find_denoiser(Empty(DDIMScheduler()))
    assert one_line(caught.value, "Empty", "scheduler")


def test_a_pipeline_that_cannot_be_run_is_told_in_one_line() -> None:
    with pytest.raises(DenoiserNotFound) as caught:
        find_denoiser(Demanding(DDIMScheduler()), call={"melody": "ode"})
    assert one_line(caught.value, "Demanding", "no such melody: ode")
    with pytest.raises(DenoiserNotFound) as caught:
        find_denoiser(Demanding(DDIMScheduler()))
    assert one_line(caught.value, "Demanding", "melody", "call=")


def test_an_unknown_component_is_told(tiny: DiffusionPipeline) -> None:
    with pytest.raises(DenoiserNotFound) as caught:
        find_denoiser(tiny, "transformer")
    assert one_line(caught.value, "'transformer'", "unet", "vqvae")


def test_a_component_that_the_loop_does_not_call_is_told(tiny: DiffusionPipeline) -> None:
    with pytest.raises(DenoiserNotFound) as caught:
        find_denoiser(tiny, "vqvae")
    assert one_line(caught.value, "vqvae")
