"""Each sample depends on nothing but its seed, and nothing is decoded."""

import copy
import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, LDMPipeline

from ldpruner.errors import ProbeError
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import StopPipeline
from ldpruner.pipelines.sampling import largest_batch, sample_decoded, sample_latents
from tests.families import FAMILIES
from tests.families.parts import PROMPTS


def stepped_latents(pipeline: DiffusionPipeline, probe: Probe, index: int) -> torch.Tensor:
    """The latents of one sample, by a denoising loop written out."""
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(probe.steps)
    generator = torch.Generator().manual_seed(probe.sample_seed(index))
    latents = torch.randn((1, 4, 8, 8), generator=generator) * scheduler.init_noise_sigma
    for step in scheduler.timesteps:
        with torch.no_grad():
            noise = pipeline.unet(latents, step).sample
        latents = scheduler.step(noise, step, latents).prev_sample
    assert isinstance(latents, torch.Tensor)
    return latents


def test_latents_are_those_of_a_denoising_loop_written_out(tiny: DiffusionPipeline) -> None:
    probe = Probe(samples=3, steps=3)
    for index in range(3):
        torch.testing.assert_close(sample_latents(tiny, probe, [index]), stepped_latents(tiny, probe, index))


@pytest.mark.parametrize("batch", [[5], [5, 1], [0, 1, 2, 3, 4, 5, 6], [6, 5]])
def test_a_sample_is_the_same_in_any_batch(tiny: DiffusionPipeline, batch: Sequence[int]) -> None:
    probe = Probe(samples=7, steps=2)
    alone = sample_latents(tiny, probe, [5])[0]
    together = sample_latents(tiny, probe, batch)[batch.index(5)]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_sample_does_not_depend_on_how_many_the_probe_has(tiny: DiffusionPipeline) -> None:
    few, many = Probe(samples=2, steps=2), Probe(samples=900, steps=2)
    assert torch.equal(sample_latents(tiny, few, [1]), sample_latents(tiny, many, [1]))


def test_the_same_samples_are_bit_identical(tiny: DiffusionPipeline, probe: Probe) -> None:
    assert torch.equal(sample_latents(tiny, probe, range(3)), sample_latents(tiny, probe, range(3)))


def test_the_global_seed_is_neither_used_nor_changed(tiny: DiffusionPipeline, probe: Probe) -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = sample_latents(tiny, probe, [0])
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(sample_latents(tiny, probe, [0]), first)


def test_latents_are_seen_after_each_step(tiny: DiffusionPipeline, probe: Probe) -> None:
    steps: list[torch.Tensor] = []
    latents = sample_latents(tiny, probe, [0, 1], steps.append)
    assert [tuple(step.shape) for step in steps] == [(2, 4, 8, 8)] * probe.steps
    assert torch.equal(steps[-1], latents)


def test_the_latents_of_a_decoded_sample_are_the_same(tiny: DiffusionPipeline, probe: Probe) -> None:
    latents, output = sample_decoded(tiny, probe, [0, 1])
    assert torch.equal(latents, sample_latents(tiny, probe, [0, 1]))
    assert [image.size for image in output.images] == [(16, 16)] * 2


def test_a_decoded_sample_can_be_stopped_after_a_step(tiny: DiffusionPipeline, probe: Probe) -> None:
    def stop(_: torch.Tensor) -> None:
        raise StopPipeline

    latents, output = sample_decoded(tiny, probe, [0], stop)
    assert output is None
    assert torch.equal(latents, sample_latents(tiny, probe, [0], stop))


def test_a_pipeline_that_returns_too_few_samples_is_refused(
    tiny: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = type(tiny).__call__

    @functools.wraps(call)
    def single(self: Any, batch_size: int = 1, generator: Any = None, **options: Any) -> Any:
        return call(self, 1, **options)

    monkeypatch.setattr(type(tiny), "__call__", single)
    with pytest.raises(ProbeError, match=r"LDMPipeline did not return 2 samples; .*\['eta'\]"):
        sample_latents(tiny, Probe(steps=1, call={"eta": 0.0}), [0, 1])


def test_nothing_is_decoded(fresh: DiffusionPipeline, probe: Probe) -> None:
    decoder_calls: list[int] = []
    fresh.vqvae.decoder.register_forward_pre_hook(lambda *_: decoder_calls.append(1))
    sample_latents(fresh, probe, [0])
    assert decoder_calls == []
    fresh(batch_size=1, num_inference_steps=1)
    assert decoder_calls == [1]  # the hook itself works


def test_sampling_leaves_nothing_behind(fresh: DiffusionPipeline, probe: Probe) -> None:
    scheduler_class = type(fresh.scheduler)
    sample_latents(fresh, probe, [0])
    assert type(fresh.scheduler) is scheduler_class
    assert "decode" not in vars(fresh.vqvae)


def test_a_decode_of_the_users_own_stays(fresh: DiffusionPipeline, probe: Probe) -> None:
    plain = fresh.vqvae.decode
    calls: list[int] = []

    def compiled(*arguments: Any, **options: Any) -> Any:
        """As after `pipeline.vae.decode = torch.compile(pipeline.vae.decode)`."""
        calls.append(1)
        return plain(*arguments, **options)

    fresh.vqvae.decode = compiled
    sample_latents(fresh, probe, [0])
    assert calls == []
    assert fresh.vqvae.decode is compiled


class Framewise(LDMPipeline):
    """Steps copies of its scheduler, whose type it asks for, and decodes what they come to."""

    @torch.no_grad()
    def __call__(
        self, batch_size: int = 1, generator: Any = None, num_inference_steps: int = 2
    ) -> tuple[torch.Tensor]:
        assert type(self.scheduler) is DDIMScheduler
        generators = generator if isinstance(generator, list) else [generator]
        latents = torch.cat([torch.randn(1, 4, 8, 8, generator=own) for own in generators])
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(num_inference_steps)
        for step in scheduler.timesteps:
            latents = scheduler.step(self.unet(latents, step).sample, step, latents).prev_sample
        return (self.vqvae.decode(latents).sample,)


@pytest.mark.case(name="scheduler-copies")
def test_where_only_copies_of_the_scheduler_step_the_decoded_latents_count(fresh: DiffusionPipeline) -> None:
    pipeline, probe = Framewise(**fresh.components), Probe(samples=2, steps=2)
    for index in (0, 1):
        expected = sample_latents(fresh, probe, [index])
        torch.testing.assert_close(sample_latents(pipeline, probe, [index]), expected)
    assert sample_latents(pipeline, probe, [0, 1]).shape == (2, 4, 8, 8)
    assert torch.equal(sample_decoded(pipeline, probe, [0])[0], sample_latents(pipeline, probe, [0]))


def test_the_prompt_of_a_sample_reaches_its_latents(tiny_text: DiffusionPipeline) -> None:
    cat, sea = (Probe(steps=2, prompts=(prompt,)) for prompt in ("a cat", "the sea"))
    assert not torch.allclose(sample_latents(tiny_text, cat, [0]), sample_latents(tiny_text, sea, [0]))
    both = Probe(steps=2, prompts=("a cat", "the sea"))
    second = sample_latents(tiny_text, both, [0, 1])[1]
    torch.testing.assert_close(second, sample_latents(tiny_text, sea, [1])[0], rtol=1e-4, atol=1e-5)


def test_guidance_and_further_arguments_reach_the_pipeline(tiny_text: DiffusionPipeline) -> None:
    prompts = ("a cat",)
    plain = sample_latents(tiny_text, Probe(steps=2, prompts=prompts, guidance=1.0), [0])
    guided = sample_latents(tiny_text, Probe(steps=2, prompts=prompts, guidance=9.0), [0])
    assert not torch.allclose(plain, guided)
    wide = sample_latents(tiny_text, Probe(steps=2, prompts=prompts, call={"height": 16, "width": 32}), [0])
    assert wide.shape == (1, 4, 8, 16)


def test_classes_differ_between_samples(tiny_transformer: DiffusionPipeline) -> None:
    assert Probe().arguments(tiny_transformer, [0, 7, 1003])["class_labels"] == [0, 7, 3]
    assert sample_latents(tiny_transformer, Probe(steps=2), [0, 1]).shape == (2, 4, 8, 8)


def test_samples_that_do_not_change_each_other_share_a_batch(tiny_text: DiffusionPipeline) -> None:
    assert largest_batch(tiny_text, Probe(samples=3, steps=2), 16) == 16
    assert largest_batch(tiny_text, Probe(samples=1, steps=2), 16) == 1


@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_samples_that_change_each_other_are_sampled_alone() -> None:
    """The pipeline of a ControlNet for Stable Diffusion 3 encodes its image with the global random state."""
    family = FAMILIES["stable-diffusion-3-controlnet"]
    pipeline, probe = family.pipeline(), Probe(samples=2, steps=2, prompts=PROMPTS, call=dict(family.call))
    assert largest_batch(pipeline, probe, 16) == 1
    assert torch.equal(sample_latents(pipeline, probe, [1]), sample_latents(pipeline, probe, [1]))


@pytest.mark.extensive
@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_the_frames_of_a_video_belong_to_their_sample() -> None:
    """The pipeline steps the frames of all samples as rows."""
    family = FAMILIES["text-to-video"]
    pipeline, probe = family.pipeline(), Probe(samples=2, steps=2, prompts=PROMPTS, call=dict(family.call))
    together = sample_latents(pipeline, probe, [0, 1])
    torch.testing.assert_close(together[1], sample_latents(pipeline, probe, [1])[0], rtol=1e-3, atol=1e-4)


@pytest.mark.extensive
@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_a_copy_of_the_scheduler_steps_something_else() -> None:
    """The pipeline copies its scheduler for the sound that goes with the video."""
    family = FAMILIES["ltx2"]
    pipeline, probe = family.pipeline(), Probe(samples=1, steps=2, prompts=PROMPTS, call=dict(family.call))
    scheduler_class = type(pipeline.scheduler)
    latents = sample_latents(pipeline, probe, [0])
    assert type(pipeline.scheduler) is scheduler_class
    assert latents.isfinite().all()
