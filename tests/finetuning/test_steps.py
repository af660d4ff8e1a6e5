"""Watching the steps of a pipeline."""

import pytest
import torch
from diffusers import DiffusionPipeline

from ldpruner.finetuning.steps import FINE_STEPS, fine_steps, record_steps, record_until
from ldpruner.pipelines.running import networks
from tests.finetuning.conftest import PROBE


def test_each_step_has_its_calls_and_its_noise_level(tiny_text: DiffusionPipeline) -> None:
    arguments = PROBE.arguments(tiny_text, [0])
    steps = record_steps(tiny_text, "unet", arguments, 2)
    assert [len(step.of("unet")) for step in steps] == [1, 1]
    assert steps[0].time > steps[1].time
    assert [call.component for call in record_until(tiny_text, "unet", arguments)] == [
        *["text_encoder"] * len(steps[0].of("text_encoder")),
        "unet",
    ]
    unet_call = steps[1].of("unet")[0]
    with torch.no_grad():
        output = networks(tiny_text)["unet"](**unet_call)
    assert torch.equal(steps[1].calls[0].output[0], output[0])


@pytest.mark.filterwarnings("ignore")
def test_a_fine_run_calls_each_network_once(tiny: DiffusionPipeline) -> None:
    calls: list[int] = []
    unet = networks(tiny)["unet"]
    hook = next(unet.children()).register_forward_hook(lambda *_: calls.append(1))
    steps = fine_steps(tiny, PROBE)
    hook.remove()
    assert len(steps) == FINE_STEPS
    assert len(calls) == 1
