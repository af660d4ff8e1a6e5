"""Recorded calls say which sizes of a denoiser's tensors can be free."""

import pytest
from diffusers import DiffusionPipeline

from ldpruner import Probe
from ldpruner.exporting.recording import record_calls
from tests.families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own


def test_a_pipeline_without_size_has_a_free_batch(tiny: DiffusionPipeline) -> None:
    freest, fixed = record_calls(tiny, None, Probe(samples=2, steps=3)).variants()
    assert (freest.freedom, freest.samples, freest.free) == ("batch", 2, {"sample": {0}, "timestep": set()})
    assert (fixed.freedom, fixed.samples, fixed.others) == ("none", 1, ())


def test_height_and_width_are_free_where_the_call_takes_them() -> None:
    family = FAMILIES["flux"]
    probe = Probe(samples=2, steps=2, prompts=family.prompts, call=dict(family.call))
    recorded = record_calls(family.pipeline(), None, probe)
    freest = next(iter(recorded.variants()))
    assert freest.freedom == "batch and size"
    assert freest.free["hidden_states"] == {0, 1}  # packed latents: height and width share a dimension
    assert freest.free["img_ids"] == {0}
    assert freest.free["txt_ids"] == set()


def test_numbers_that_change_from_step_to_step_are_no_constants() -> None:
    family = FAMILIES["dance-diffusion"]
    recorded = record_calls(family.pipeline(), None, Probe(samples=1, steps=4, call=dict(family.call)))
    assert all(path in recorded.single.tensors(recorded.numbers) for path in ("sample", "timestep"))
