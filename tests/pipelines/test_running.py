"""A pipeline is run quietly, and its parts are named."""

import pytest
import torch
from diffusers import DiffusionPipeline

from ldpruner.pipelines.patches import patched
from ldpruner.pipelines.running import StopPipeline, accepted_arguments, networks, run_pipeline, schedulers


def test_networks_and_schedulers_are_found_among_the_components(tiny_text: DiffusionPipeline) -> None:
    assert set(networks(tiny_text)) == {"vae", "text_encoder", "unet"}
    assert schedulers(tiny_text) == [tiny_text.scheduler]


def test_a_compiled_network_is_unwrapped(fresh: DiffusionPipeline) -> None:
    unet = fresh.unet
    fresh.unet = torch.compile(unet, backend="eager")
    assert networks(fresh)["unet"] is unet


def test_only_arguments_that_the_call_names_are_accepted(tiny: DiffusionPipeline) -> None:
    assert accepted_arguments(tiny, {"prompt": "a cat", "batch_size": 2}) == {"batch_size": 2}


def test_a_run_needs_no_gradients_and_shows_no_progress_bar(
    fresh: DiffusionPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh.set_progress_bar_config(desc="steps")
    output = run_pipeline(fresh, {"num_inference_steps": 1, "output_type": "pt", "return_dict": False})
    assert capsys.readouterr().err == ""
    assert output is not None
    assert fresh._progress_bar_config == {"desc": "steps"}


def test_a_stopped_run_returns_none(fresh: DiffusionPipeline) -> None:
    def stop(*_: object) -> None:
        raise StopPipeline

    with patched(fresh.vqvae, decode=stop):
        assert run_pipeline(fresh, {"num_inference_steps": 1}) is None
