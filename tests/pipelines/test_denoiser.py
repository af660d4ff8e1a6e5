"""The denoiser of a pipeline is found by running its first step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FirstBlockCacheConfig
from torch import nn

from ldpruner import Probe
from ldpruner.errors import DenoiserNotFound, WeightsNeeded
from ldpruner.operators.discovery import denoiser_macs
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pruning.serialization import load_meta
from tests.families import FAMILIES


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
def test_the_network_of_the_loop_is_the_denoiser(fixture: str, component: str, request: pytest.FixtureRequest) -> None:
    pipeline = request.getfixturevalue(fixture)
    denoiser = find_denoiser(pipeline)
    assert denoiser.component == component
    assert denoiser.module is getattr(pipeline, component)


def test_the_recorded_call_can_be_repeated(tiny: DiffusionPipeline) -> None:
    denoiser = find_denoiser(tiny)
    sample = denoiser().sample
    assert denoiser.rows == 1
    assert sample.shape == (1, 4, 8, 8)
    assert torch.equal(denoiser().sample, sample)


def test_guidance_makes_two_rows_of_one_sample(tiny_text: DiffusionPipeline) -> None:
    assert find_denoiser(tiny_text).rows == find_denoiser(tiny_text).rows_per_step == 2
    assert find_denoiser(tiny_text, call={"guidance_scale": 1.0}).rows == 1


def test_another_network_can_be_named(tiny_text: DiffusionPipeline) -> None:
    assert find_denoiser(tiny_text, "text_encoder").module is tiny_text.text_encoder


def test_finding_the_denoiser_leaves_nothing_behind(fresh: DiffusionPipeline) -> None:
    before = {name: weight.clone() for name, weight in fresh.unet.state_dict().items()}
    scheduler_class = type(fresh.scheduler)
    find_denoiser(fresh)
    modules = [module for network in (fresh.unet, fresh.vqvae) for module in network.modules()]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in modules)
    assert type(fresh.scheduler) is scheduler_class
    assert all(torch.equal(before[name], weight) for name, weight in fresh.unet.state_dict().items())


def assert_not_found(pipeline: DiffusionPipeline, *parts: str, **options: Any) -> None:
    with pytest.raises(DenoiserNotFound) as caught:
        find_denoiser(pipeline, **options)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts)


def test_a_pipeline_without_a_denoiser_is_refused() -> None:
    assert_not_found(Empty(DDIMScheduler()), "Empty", "scheduler")


def test_a_pipeline_that_cannot_be_run_is_refused_in_one_line() -> None:
    assert_not_found(Demanding(DDIMScheduler()), "Demanding", "no such melody: ode", call={"melody": "ode"})
    assert_not_found(Demanding(DDIMScheduler()), "Demanding", "melody", "call=")


class Choosy(Empty):
    """A pipeline that needs one of two arguments, neither of which is required by its signature."""

    def __call__(self, image: Any = None, image_embeds: Any = None, strength: float = 0.5) -> None:  # type: ignore[override]
        raise ValueError("Provide either `image` or `image_embeds`, with strength.")


class Taking(Empty):
    """A pipeline whose network pops from a list and writes into a tensor."""

    class Network(nn.Module):
        def forward(self, sample: torch.Tensor, residuals: list[torch.Tensor]) -> torch.Tensor:
            return sample.add_(residuals.pop())

    def __init__(self, scheduler: DDIMScheduler) -> None:
        super().__init__(scheduler)
        self.network = self.Network()

    def __call__(self, num_inference_steps: int = 2) -> torch.Tensor:
        self.scheduler.set_timesteps(num_inference_steps)
        output = self.network(torch.zeros(1, 4, 8, 8), [torch.ones(1)])
        assert isinstance(output, torch.Tensor)
        return output


@pytest.mark.case(name="lacking-argument")
def test_the_arguments_that_a_call_lacks_are_named() -> None:
    demanding = r"^Demanding could not be run: its call lacks melody; give .*Probe\(call=\{...\}\)"
    with pytest.raises(DenoiserNotFound, match=demanding):
        find_denoiser(Demanding(DDIMScheduler()))
    with pytest.raises(DenoiserNotFound, match=r"^Choosy could not be run: its call may lack image, image_embeds "):
        find_denoiser(Choosy(DDIMScheduler()))


@pytest.mark.case(name="kandinsky-2.2-img2img")
@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_a_pipeline_of_diffusers_says_what_its_call_lacks() -> None:
    pipeline = FAMILIES["kandinsky-2.2-img2img"].pipeline()
    with pytest.raises(DenoiserNotFound, match="its call lacks image_embeds, image, negative_image_embeds; give"):
        find_denoiser(pipeline)


@pytest.mark.case(name="hunyuan-dit-controlnet")
def test_a_network_that_changes_its_arguments_can_be_called_again() -> None:
    denoiser = find_denoiser(Taking(DDIMScheduler()))
    for _ in range(2):
        assert torch.equal(denoiser(), torch.ones(1, 4, 8, 8))
    assert torch.equal(denoiser.arguments[0], torch.zeros(1, 4, 8, 8))


@pytest.mark.case(name="any-flow")
def test_a_pipeline_that_needs_its_weights_says_so(tmp_path: Path) -> None:
    family = FAMILIES["any-flow"]
    family.pipeline().save_pretrained(tmp_path)
    with pytest.raises(WeightsNeeded, match=r"^AnyFlowFARPipeline computes something that needs its weights"):
        find_denoiser(load_meta(tmp_path), call=dict(family.call))


def test_an_unknown_component_is_refused(tiny: DiffusionPipeline) -> None:
    assert_not_found(tiny, "'transformer'", "unet", "vqvae", component="transformer")


def test_a_component_that_the_loop_does_not_call_is_refused(tiny: DiffusionPipeline) -> None:
    assert_not_found(tiny, "vqvae", component="vqvae")


@pytest.mark.parametrize(("family", "component"), [("wan", None), ("wan-two-denoisers", "transformer_2")])
def test_two_calls_of_a_step_count_as_many_rows_as_one_call_on_both(family: str, component: str | None) -> None:
    """Wan calls its denoiser once with the prompt and once without."""
    denoiser = find_denoiser(FAMILIES[family].pipeline(), component, FAMILIES[family].call)
    assert (denoiser.rows, denoiser.rows_per_step) == (1, 2)


@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_a_cached_network_repeats_its_whole_call_each_time() -> None:
    family = FAMILIES["flux"]
    pipeline = family.pipeline()
    denoiser = find_denoiser(
        pipeline, None, Probe(samples=1, steps=2, call=dict(family.call)).arguments(pipeline, [0])
    )
    before, macs = denoiser()[0], denoiser_macs(denoiser)
    denoiser.module.enable_cache(FirstBlockCacheConfig(threshold=1e6))  # type: ignore[operator]
    assert denoiser_macs(denoiser) == macs
    for _ in range(2):
        assert torch.equal(denoiser()[0], before)
