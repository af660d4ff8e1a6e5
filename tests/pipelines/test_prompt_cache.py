"""What comes before the first denoising step is computed once, and latents stay bit-identical."""

from collections import Counter

import pytest
import torch
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.prompt_cache import CallCache
from ldpruner.pipelines.running import networks
from ldpruner.pipelines.sampling import sample_latents
from tests.families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own: deprecated calls

# Plain, with a ControlNet, with a language model, with a prior, and with another denoiser for the first steps.
NAMES = (
    "stable-diffusion",
    pytest.param("stable-diffusion-controlnet", marks=pytest.mark.extensive),
    "qwen-image",
    pytest.param("kandinsky-2.2-combined", marks=pytest.mark.extensive),
    pytest.param("wan-two-denoisers-2", marks=pytest.mark.extensive),
)


def count_calls(pipeline: DiffusionPipeline) -> Counter[str]:
    """How often each network computes from now on."""
    calls = Counter[str]()
    for name, network in networks(pipeline).items():
        network.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    return calls


@pytest.mark.parametrize("name", NAMES)
def test_networks_before_the_first_step_run_once_and_latents_stay_the_same(name: str) -> None:
    family, pipeline = FAMILIES[name], FAMILIES[name].pipeline()
    probe = ldpruner.Probe(samples=2, steps=2, call=dict(family.call)).completed(pipeline)
    component = find_denoiser(pipeline, family.component, probe.arguments(pipeline, [0])).component
    classes = {name: type(network) for name, network in networks(pipeline).items()}
    expected = sample_latents(pipeline, probe, [0])
    cache, calls = CallCache(), count_calls(pipeline)

    def sample() -> torch.Tensor:
        with cache.before_denoising(pipeline, component):
            return sample_latents(pipeline, probe, [0])

    first, calls_of_first = sample(), calls.copy()
    assert all(torch.equal(latents, expected) for latents in (first, sample(), sample()))
    repeated = {network for network in calls if calls[network] > calls_of_first[network]}
    assert {component} <= repeated <= {component, "controlnet"}
    assert {name: type(network) for name, network in networks(pipeline).items()} == classes


@pytest.fixture(scope="module")
def pipeline() -> DiffusionPipeline:
    return FAMILIES["stable-diffusion"].pipeline()


def encode(cache: CallCache, pipeline: DiffusionPipeline, *tokens: int) -> torch.Tensor:
    with torch.no_grad(), cache.before_denoising(pipeline, "unet"):
        states: torch.Tensor = pipeline.text_encoder(torch.tensor([tokens]))[0]
    return states


def test_a_pipeline_that_writes_into_an_output_does_not_change_the_cache(pipeline: DiffusionPipeline) -> None:
    cache = CallCache()
    first = encode(cache, pipeline, 2, 3).clone()
    for _ in range(3):
        assert torch.equal(encode(cache, pipeline, 2, 3).mul_(2), 2 * first)


def test_inputs_of_other_values_shapes_dtypes_and_options_are_computed(pipeline: DiffusionPipeline) -> None:
    cache, calls = CallCache(), count_calls(pipeline)
    different = [(2, 3), (3, 2), (2, 3, 1)]
    outputs = [encode(cache, pipeline, *tokens) for tokens in different]
    assert calls["text_encoder"] == len(different)
    assert not torch.equal(outputs[0], outputs[1])
    with torch.no_grad(), cache.before_denoising(pipeline, "unet"):
        pipeline.text_encoder(torch.tensor([[2, 3]], dtype=torch.int32))
        pipeline.text_encoder(torch.tensor([[2, 3]]), output_hidden_states=True)
    assert calls["text_encoder"] == len(different) + 2


def test_the_last_used_outputs_are_kept_within_the_limit(pipeline: DiffusionPipeline) -> None:
    size = sum(tensor.nbytes for tensor in pipeline.text_encoder(torch.tensor([[2, 3]])).values())
    cache, calls = CallCache(max_bytes=2 * size), count_calls(pipeline)
    for tokens in [(2, 3), (3, 4), (2, 3), (4, 5), (2, 3), (3, 4)]:
        encode(cache, pipeline, *tokens)
    assert calls["text_encoder"] == 4
    longer = tuple(range(2, 8))
    for _ in range(2):
        encode(cache, pipeline, *longer)
    assert calls["text_encoder"] == 6
