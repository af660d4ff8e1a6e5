"""A pipeline is run in a known state, and afterwards has the state that it had."""

import copy
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from torch import nn

import ldpruner
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import StopPipeline, run_pipeline
from ldpruner.pipelines.sampling import sample_latents
from ldpruner.pipelines.state import ALIGNMENT, align_weights_, evaluation_mode, known_state, without_caches
from tests.families import FAMILIES

PROBE = Probe(samples=2, steps=2)


def random_states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]


def state(pipeline: DiffusionPipeline) -> dict[str, Any]:
    """Everything that a run could leave in a pipeline, as values that can be compared."""
    networks = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    return {
        "attributes": sorted(vars(pipeline)),
        "settings": {name: value for name, value in vars(pipeline).items() if isinstance(value, (int, float, dict))},
        "scheduler": {name: str(value) for name, value in vars(pipeline.scheduler).items()},
        "modules": [(module.training, *map(id, module._buffers)) for part in networks for module in part.modules()],
        "dtypes": [weight.dtype for part in networks for weight in part.state_dict().values()],
        "classes": [dict(vars(type(part))) for part in (pipeline, *pipeline.components.values())],
        "random": random_states(),
    }


def fail(pipeline: DiffusionPipeline) -> None:
    with pytest.raises(ldpruner.LdPrunerError):
        find_denoiser(pipeline, call={"num_inference_steps": "x"})


@pytest.mark.case(number=14)
@pytest.mark.parametrize(
    "use",
    [
        ldpruner.find_operators,
        lambda pipeline: sample_latents(pipeline, PROBE, [0, 1]),
        lambda pipeline: run_pipeline(pipeline, {"num_inference_steps": 1}),
        fail,
    ],
    ids=["find_operators", "sample_latents", "run_pipeline", "an error"],
)
def test_a_use_leaves_the_pipeline_and_all_random_states_as_they_were(
    fresh: DiffusionPipeline, use: Callable[[DiffusionPipeline], Any]
) -> None:
    fresh.scheduler.set_timesteps(7)
    before = state(fresh)
    assert "_progress_bar_config" not in before["attributes"]
    use(fresh)
    assert state(fresh) == before


@pytest.mark.case(number=14)
def test_the_attributes_that_a_call_sets_are_those_of_before(tiny_text: DiffusionPipeline) -> None:
    pipeline = copy.deepcopy(tiny_text)
    pipeline("a cat", num_inference_steps=1, guidance_scale=3.0, output_type="latent")
    before = state(pipeline)
    sample_latents(pipeline, PROBE.replace(prompts=("the sea",), guidance=9.0), [0, 1])
    assert state(pipeline) == before
    assert pipeline._guidance_scale == 3.0


@pytest.mark.extensive
@pytest.mark.case(number=9)
def test_scores_in_train_mode_are_those_in_evaluation_mode(fresh: DiffusionPipeline) -> None:
    for module in fresh.unet.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    operators = ldpruner.find_operators(fresh)[:2]
    expected = ldpruner.score_operators(fresh, operators, PROBE, budgets=None).scores
    fresh.unet.train()
    fresh.unet.mid_block.eval()
    modes = [module.training for module in fresh.unet.modules()]
    assert ldpruner.find_operators(fresh)[:2] == operators
    scores = ldpruner.score_operators(fresh, operators, PROBE, budgets=None).scores
    assert [score.score for score in scores] == [score.score for score in expected]
    assert torch.equal(find_denoiser(fresh)().sample, find_denoiser(fresh)().sample)
    assert [module.training for module in fresh.unet.modules()] == modes


@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_what_a_scheduler_writes_in_place_is_restored(fresh: DiffusionPipeline) -> None:
    scheduler = DPMSolverMultistepScheduler()
    scheduler.set_timesteps(3)
    fresh.scheduler = scheduler
    sigmas, outputs = scheduler.sigmas.clone(), scheduler.model_outputs
    with known_state(fresh, 0):
        scheduler.sigmas.zero_()
        outputs[0] = torch.ones(1)
        scheduler._begin_index, scheduler.surplus = 2, True
    assert torch.equal(scheduler.sigmas, sigmas)
    assert scheduler.model_outputs is outputs
    assert outputs == [None, None]
    assert scheduler._begin_index is None
    assert not hasattr(scheduler, "surplus")


def test_precision_and_attention_processors_are_restored(tiny_text: DiffusionPipeline) -> None:
    pipeline = copy.deepcopy(tiny_text)
    vae, unet = pipeline.vae.half(), pipeline.unet
    vae.register_buffer("scale", torch.ones(1, dtype=torch.float16))
    processors = dict(unet.attn_processors)
    with evaluation_mode(vae, unet):
        vae.float()
        unet.set_attn_processor(type(next(iter(processors.values())))())
    assert {weight.dtype for weight in vae.state_dict().values()} == {torch.float16}
    assert all(unet.attn_processors[name] is processor for name, processor in processors.items())


@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_a_stopped_pipeline_leaves_no_perturbed_attention(tiny_text: DiffusionPipeline) -> None:
    from diffusers import StableDiffusionPAGPipeline

    pipeline = StableDiffusionPAGPipeline(
        **{**tiny_text.components, "unet": copy.deepcopy(tiny_text.unet)}, requires_safety_checker=False
    )
    before = [type(processor).__name__ for processor in pipeline.unet.attn_processors.values()]
    find_denoiser(pipeline, call={"pag_scale": 3.0})
    assert [type(processor).__name__ for processor in pipeline.unet.attn_processors.values()] == before


def test_pipelines_inside_a_pipeline_are_restored_too() -> None:
    pipeline = FAMILIES["kandinsky-2.2-combined"].pipeline()
    inner = [vars(pipeline)[name] for name in ("prior_pipe", "decoder_pipe")]
    before = [sorted(vars(part)) for part in inner]
    with known_state(pipeline, 0):
        assert all(part._progress_bar_config == {"disable": True} for part in inner)
    assert [sorted(vars(part)) for part in inner] == before


def test_the_same_seed_gives_the_same_numbers_whatever_was_used_before(fresh: DiffusionPipeline) -> None:
    def numbers() -> tuple[float, float, float]:
        with known_state(fresh, 3):
            return torch.rand(1).item(), float(np.random.rand()), random.random()

    first = numbers()
    torch.rand(1)
    assert numbers() == first


def test_caches_of_modules_are_forgotten() -> None:
    module = nn.Sequential(nn.Linear(1, 1))
    with without_caches(module):
        module[0].table = [1]  # type: ignore[assignment]
        module[0].register_buffer("angles", torch.ones(1))
    assert not hasattr(module[0], "table")
    assert "angles" not in dict(module.named_buffers())


def test_the_state_of_many_modules_costs_milliseconds(fresh: DiffusionPipeline) -> None:
    """The U-Net of Stable Diffusion has seven hundred modules, and its pipeline samples for seconds."""
    fresh.unet.add_module("many", nn.Sequential(*(nn.Linear(1, 1) for _ in range(700))))
    times = []
    for _ in range(5):
        start = time.thread_time()
        with known_state(fresh, 0):
            pass
        times.append(time.thread_time() - start)
    assert min(times) < 0.03


def test_a_stopped_run_frees_offloaded_networks(fresh: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[int] = []
    monkeypatch.setattr(type(fresh), "maybe_free_model_hooks", lambda _: freed.append(1))

    def fail(*_: Any) -> None:
        raise StopPipeline if len(freed) == 0 else ZeroDivisionError

    handle = fresh.unet.register_forward_pre_hook(fail)
    assert run_pipeline(fresh, {"num_inference_steps": 1}) is None
    with pytest.raises(ZeroDivisionError):
        run_pipeline(fresh, {"num_inference_steps": 1})
    handle.remove()
    assert len(freed) == 2


def test_weights_of_a_mapped_file_are_aligned(tiny: DiffusionPipeline, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    for weight in pipeline.unet.parameters():  # as far from alignment as a file may have it
        shifted = torch.empty(weight.nbytes + 4, dtype=torch.uint8)[4:].view(weight.dtype).view(weight.shape)
        weight.data = shifted.copy_(weight.data)
    align_weights_(pipeline)
    for weight, expected in zip(pipeline.unet.parameters(), tiny.unet.parameters(), strict=True):
        assert weight.data_ptr() % ALIGNMENT == 0
        assert torch.equal(weight, expected)
