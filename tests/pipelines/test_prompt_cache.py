"""What comes before the first denoising step is computed once, and every draw is the same to the bit."""

from collections import Counter

import pytest
import torch
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.prompt_cache import CallCache
from ldpruner.pipelines.running import networks
from ldpruner.pipelines.sampling import draw_latents
from ldpruner.scoring.worker import Task, Worker
from tests.families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own: deprecated calls

# the last ones encode texts with a language model, draw with a prior, and take their first steps with another denoiser
NAMES = (
    "stable-diffusion",
    "stable-diffusion-controlnet",
    "qwen-image",
    "kandinsky-2.2-combined",
    "wan-two-denoisers-2",
)


def probe_of(name: str, pipeline: DiffusionPipeline) -> ldpruner.Probe:
    return ldpruner.Probe(samples=2, steps=2, call=dict(FAMILIES[name].call)).completed(pipeline)


def counted(pipeline: DiffusionPipeline) -> Counter[str]:
    """How often each network has computed from now on."""
    runs = Counter[str]()
    for name, network in networks(pipeline).items():
        network.register_forward_pre_hook(lambda *_, name=name: runs.update([name]))
    return runs


@pytest.mark.parametrize("name", NAMES)
def test_networks_before_the_first_step_run_once_and_latents_stay_the_same(name: str) -> None:
    pipeline = FAMILIES[name].pipeline()
    probe, component = probe_of(name, pipeline), FAMILIES[name].component
    component = find_denoiser(pipeline, component, probe.arguments(pipeline, [0])).component
    classes = {name: type(one) for name, one in networks(pipeline).items()}
    expected = draw_latents(pipeline, probe, [0])
    runs, worker, task = counted(pipeline), Worker(pipeline), Task(component, probe, None, (0,), 1)
    drawn = [worker(task).latents]
    first = runs.copy()
    drawn += [worker(task).latents for _ in range(2)]
    assert all(one is not None and torch.equal(torch.from_numpy(one), expected.double()) for one in drawn)
    again = {one for one in runs if runs[one] > first[one]}
    assert again <= {component, "controlnet"}, runs
    assert component in again
    assert {name: type(one) for name, one in networks(pipeline).items()} == classes


@pytest.fixture(scope="module")
def pipeline() -> DiffusionPipeline:
    return FAMILIES["stable-diffusion"].pipeline()


def encoded(reuse: CallCache, pipeline: DiffusionPipeline, *tokens: int) -> torch.Tensor:
    with torch.no_grad(), reuse.until_called(pipeline, "unet"):
        states: torch.Tensor = pipeline.text_encoder(torch.tensor([tokens]))[0]
    return states


def test_what_a_pipeline_writes_into_an_answer_does_not_come_back(pipeline: DiffusionPipeline) -> None:
    reuse = CallCache()
    first = encoded(reuse, pipeline, 2, 3).clone()
    for _ in range(3):
        assert torch.equal(encoded(reuse, pipeline, 2, 3).mul_(2), 2 * first)


def test_other_inputs_and_other_kinds_of_inputs_are_told_apart(pipeline: DiffusionPipeline) -> None:
    reuse, runs = CallCache(), counted(pipeline)
    different = [(2, 3), (3, 2), (2, 3, 1)]
    answers = [encoded(reuse, pipeline, *tokens) for tokens in different]
    assert runs["text_encoder"] == len(different)
    assert not torch.equal(answers[0], answers[1])
    with torch.no_grad(), reuse.until_called(pipeline, "unet"):
        pipeline.text_encoder(torch.tensor([[2, 3]], dtype=torch.int32))
        pipeline.text_encoder(torch.tensor([[2, 3]]), output_hidden_states=True)
    assert runs["text_encoder"] == len(different) + 2


def test_the_last_used_answers_are_kept_within_the_limit(pipeline: DiffusionPipeline) -> None:
    size = sum(one.nbytes for one in pipeline.text_encoder(torch.tensor([[2, 3]])).values())
    reuse, runs = CallCache(limit=2 * size), counted(pipeline)
    for tokens in [(2, 3), (3, 4), (2, 3), (4, 5), (2, 3), (3, 4)]:
        encoded(reuse, pipeline, *tokens)
    assert runs["text_encoder"] == 4
    longer = tuple(range(2, 8))
    for _ in range(2):
        encoded(reuse, pipeline, *longer)
    assert runs["text_encoder"] == 6
