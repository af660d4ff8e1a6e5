"""The live comparison without its page."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DanceDiffusionPipeline,
    DiffusionPipeline,
    IPNDMScheduler,
    UNet1DModel,
)
from numpy.testing import assert_array_equal

import ldpruner
from ldpruner.errors import EvaluationError, PipelineNotFound, ProbeError, RunStoreError
from ldpruner.report.live import MAX_PROMPT, MAX_STEPS, Live, LiveSample, open_live
from ldpruner.run_folder import RunFolder

PROMPT = "a dog on the sea"
MANY = 900  # steps


@pytest.fixture(scope="module")
def live(text_run: Path) -> Iterator[Live]:
    opened = open_live(text_run, device="cpu")
    yield opened
    opened.close()


def last(live: Live, name: str, prompt: str | None = PROMPT, seed: int = 5, steps: int = 2) -> LiveSample:
    """The finished sample."""
    *_, sample = live.sample(name, live.request(prompt, seed, steps))
    return sample


def picture(sample: LiveSample) -> np.ndarray[Any, Any]:
    assert sample.batch is not None
    assert sample.batch.pictures is not None
    return np.asarray(sample.batch.pictures[0, 0])


def directly(pipeline: DiffusionPipeline, seed: int, steps: int = 2, prompt: str = PROMPT) -> np.ndarray[Any, Any]:
    """What somebody gets who calls the pipeline."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    return np.asarray(pipeline(prompt, generator=generator, num_inference_steps=steps).images[0])


@pytest.fixture
def calls(live: Live) -> Iterator[list[int]]:
    """A list that grows with each call of the original's denoiser."""
    counted: list[int] = []
    hook = live._pipelines["original"].unet.register_forward_hook(lambda *_: counted.append(1))
    yield counted
    hook.remove()


def test_each_sample_is_what_its_pipeline_gives_for_the_seed(live: Live, text_run: Path) -> None:
    folder = RunFolder(text_run)
    assert live.names == ("original", "pruned", "recovered")
    places: tuple[Path | str, ...] = (folder.model(), folder.pruned, folder.recovered)
    pictures = [picture(last(live, name)) for name in live.names]
    for place, sampled in zip(places, pictures, strict=True):
        assert_array_equal(sampled, directly(ldpruner.load(place), 5))
    assert len({sampled.tobytes() for sampled in pictures}) == len(pictures)
    assert not np.array_equal(picture(last(live, "original", seed=6)), pictures[0])


def test_the_seconds_are_those_of_the_call_and_the_probe_is_the_runs(live: Live) -> None:
    short, long = (last(live, "original", steps=steps) for steps in (1, 40))
    assert 0 < short.seconds < long.seconds
    assert (live.prompt, live.probe.steps, long.steps) == ("a cat on the moon", 2, 40)


def test_all_networks_but_the_denoiser_are_shared(live: Live) -> None:
    parts = [live._pipelines[name].components for name in live.names]
    for name in ("text_encoder", "vae"):
        assert len({id(components[name]) for components in parts}) == 1
    for name in ("unet", "scheduler"):
        assert len({id(components[name]) for components in parts}) == len(parts)


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        ((PROMPT, -1, 2), "seed=-1: Input should be greater than or equal to 0"),
        ((PROMPT, 2**64, 2), "seed="),
        ((PROMPT, "1.5", 2), "seed='1.5': Input should be a valid integer"),
        ((PROMPT, "<script>", 2), "seed='<script>'"),
        ((PROMPT, True, 2), "not true or false"),
        ((PROMPT, [1], 2), "seed=[1]"),
        ((PROMPT, None, 2), "seed=None"),
        ((PROMPT, 1, 0), "steps=0"),
        ((PROMPT, 1, 2.5), "steps=2.5"),
        ((PROMPT, 1, float("nan")), "steps=nan"),
        ((PROMPT, 1, 10_000), f"less than or equal to {MAX_STEPS}"),
        (("x" * (MAX_PROMPT + 1), 1, 2), f"at most {MAX_PROMPT}"),
        (("\ud800", 1, 2), "half a character"),
    ],
)
def test_a_bad_request_is_one_line(live: Live, request_: tuple[Any, Any, Any], problem: str) -> None:
    with pytest.raises(ProbeError) as raised:
        live.request(*request_)
    assert problem in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("prompt", ["", None, "x" * MAX_PROMPT, "<script>alert(1)</script>", "[/]\x1b\0"])
def test_any_other_prompt_is_sampled(live: Live, prompt: str | None) -> None:
    assert_array_equal(picture(last(live, "pruned", prompt)), directly(live._pipelines["pruned"], 5, 2, prompt or ""))


def test_the_same_request_again_takes_no_time(live: Live, calls: list[int]) -> None:
    first = last(live, "original", "a dog")
    before = len(calls)
    assert before
    assert last(live, "original", "a dog") is first
    assert len(calls) == before
    last(live, "original", "a cat")
    assert len(calls) > before


def test_a_request_that_is_left_stops_and_the_next_one_is_right(live: Live, calls: list[int]) -> None:
    left = live.sample("original", live.request(PROMPT, 1, MANY))
    assert next(left).batch is None
    left.close()
    assert_array_equal(picture(last(live, "pruned")), directly(live._pipelines["pruned"], 5))
    assert 0 < len(calls) < MANY
    assert picture(last(live, "original", seed=1)).shape == (16, 16, 3)  # a stopped sample is not kept


def test_requests_at_once_wait_for_each_other(live: Live) -> None:
    seeds = range(6)
    with ThreadPoolExecutor(len(seeds)) as users:
        pictures = list(users.map(lambda seed: picture(last(live, live.names[seed % 3], seed=seed)), seeds))
    for seed, sampled in zip(seeds, pictures, strict=True):
        assert_array_equal(sampled, directly(live._pipelines[live.names[seed % 3]], seed))


def test_closing_stops_what_runs(live: Live) -> None:
    live = Live(live._pipelines, live.probe, live.model, live.run, has_sound=False)
    running = live.sample("original", live.request(PROMPT, 1, MANY))
    next(running)
    live.close()
    with pytest.raises(EvaluationError, match="stopped"):
        list(running)


def test_a_recovered_pipeline_of_an_earlier_plan_is_left_out(text_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(text_run, tmp_path / "run"))
    (run / "recovered" / "unet" / "config.json").write_text("{}")
    live = open_live(run, device="cpu")
    live.close()
    assert live.names == ("original", "pruned")


def test_what_is_missing_is_one_line_that_says_what_to_run(text_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunStoreError, match="ldpruner score"):
        open_live(tmp_path / "nowhere")
    run = Path(shutil.copytree(text_run, tmp_path / "run"))
    shutil.rmtree(run / "pruned")
    with pytest.raises(PipelineNotFound, match="ldpruner prune --run"):
        open_live(run)


def test_a_pipeline_without_prompts_needs_none(finished: Path) -> None:
    live = open_live(finished, device="cpu")
    assert live.prompt is None
    assert not live.has_sound
    original = live._pipelines["original"]
    image = original(generator=torch.Generator().manual_seed(7), num_inference_steps=3).images[0]
    assert_array_equal(picture(last(live, "original", "", seed=7, steps=3)), np.asarray(image))
    with pytest.raises(ProbeError, match="takes no prompts"):
        last(live, "original", "a cat")
    live.close()


def test_sounds_keep_their_level(probe: ldpruner.Probe) -> None:
    torch.manual_seed(0)
    network = UNet1DModel(
        sample_size=64,
        sample_rate=64,
        extra_in_channels=64,
        use_timestep_embedding=False,
        block_out_channels=(32, 32, 64),
        layers_per_block=1,
    )
    pipeline = DanceDiffusionPipeline(network.eval(), IPNDMScheduler())
    live = Live({"original": pipeline, "pruned": pipeline}, probe, "model", Path("run"), has_sound=True)
    sample = last(live, "pruned", None)
    assert sample.batch is not None
    assert sample.batch.sounds is not None
    pipeline.set_progress_bar_config(disable=True)
    direct = pipeline(generator=torch.Generator().manual_seed(5), num_inference_steps=2).audios[0]
    assert_array_equal(sample.batch.sounds[0], direct)
    assert sample.batch.sampling_rate == 64
    live.close()
