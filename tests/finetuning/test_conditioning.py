"""Call signatures: how each kind of pipeline calls its denoiser."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import ldpruner
from ldpruner.errors import FinetuningError
from ldpruner.finetuning.call_arguments import parts_of_samples
from ldpruner.finetuning.conditioning import CallSignature, watch_call_signature
from ldpruner.finetuning.distillation import prepare_distillation
from ldpruner.finetuning.noise_levels import TimeMap
from ldpruner.finetuning.steps import NetworkCall, record_steps
from ldpruner.pipelines.denoiser import find_denoiser
from tests.families import FAMILIES

# Every way in which a pipeline gives its denoiser more than latents and noise levels.
SUPPORTED = (
    "stable-diffusion",
    "stable-diffusion-pndm",
    "stable-diffusion-euler",
    "stable-diffusion-xl",
    "instruct-pix2pix",
    "stable-diffusion-inpaint",
    "ldm",
    "audio-diffusion",
    "animatediff",
    "cogvideox",
    "dit",
    "pixart-alpha",
    "stable-diffusion-3",
    "flux",
    "sana",
    "hunyuan-dit",
    "wan",
    "ltx",
    "lumina2",
    "stable-diffusion-controlnet",
    "flux-controlnet",
    "hunyuan-dit-controlnet",
    "wan-two-denoisers-2",
    "latent-upscaler",
    "qwen-image",
)
# Learn from data by no way that is known yet, and from the original's own calls.
REFUSED = {
    "ltx2": "change from step to step",
    "stable-cascade": "objective that is not supported",
    "text-to-video": "for latents",
    "amused": "no latents and timestep",
    "z-image": "no latents and timestep",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SUPPORTED)
def test_a_call_is_repeated_as_the_pipeline_makes_it(name: str) -> None:
    family = FAMILIES[name]
    pipeline = family.pipeline()
    probe = ldpruner.Probe(samples=3, steps=3, prompts=family.prompts, call=dict(family.call))
    component = find_denoiser(pipeline, family.component, probe.arguments(pipeline, [0])).component
    signature = watch_call_signature(pipeline, component, probe, batches=True)
    step = record_steps(pipeline, component, probe.arguments(pipeline, [1, 2]), 1)[0]
    recorded, inputs = step.of(component)[0], step.of(component)[0][signature.sample]
    assert signature.time_range[0] <= step.time <= signature.time_range[1]
    for copy in range(signature.copies):
        rows = slice(2 * copy, 2 * copy + 2)
        latents = inputs[rows]
        if signature.appended is not None:
            latents = latents.narrow(signature.appended, 0, signature.latents[signature.appended - 1])
        conditions = [tensor[:, copy] for tensor in signature.conditions(step.calls, 2)]
        repeated = signature.arguments(latents, torch.full((2,), step.time), conditions)
        assert repeated.keys() == recorded.keys()
        torch.testing.assert_close(repeated[signature.sample], inputs[rows])
        for leaf, wanted in zip(pytree.tree_leaves(repeated), pytree.tree_leaves(recorded), strict=True):
            if isinstance(leaf, Tensor) and wanted.ndim and len(wanted) == len(inputs):
                torch.testing.assert_close(leaf, wanted[rows].to(leaf.dtype), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_repeated_is_refused_with_data_in_one_line(name: str) -> None:
    family = FAMILIES[name]
    probe = ldpruner.Probe(samples=4, steps=3, prompts=family.prompts, call=dict(family.call))
    with pytest.raises(FinetuningError, match=REFUSED[name]) as caught:
        prepare_distillation(family.pipeline(), [], probe, family.component, None)
    assert "\n" not in str(caught.value)


def test_a_list_that_grows_with_the_samples_moves_no_condition() -> None:
    def call(rows: int) -> dict[str, Any]:
        """As of Qwen-Image with a ControlNet, whose residuals come behind the sizes of the pictures."""
        residuals = torch.arange(2.0 * rows).reshape(rows, 2)
        latents, times = torch.zeros(rows, 4), torch.ones(rows)
        return {"sample": latents, "timestep": times, "sizes": [(1, 8, 8)] * rows, "residuals": (residuals,)}

    parts = parts_of_samples(call(1), call(2), {0, 1}, 1, "Pipeline")
    signature = CallSignature(
        component="transformer",
        scheduler=None,
        template=call(1),
        sample="sample",
        time="timestep",
        condition_places=parts.places,
        repeated=parts.repeated,
        sizes_differ=parts.sizes_differ,
        latents=torch.Size([4]),
        appended=None,
        copies=1,
        calls=1,
        time_map=TimeMap(1.0, 0.0),
    )
    (conditions,) = signature.conditions([NetworkCall("transformer", call(3))], 3)
    torch.testing.assert_close(conditions[:, 0], call(3)["residuals"][0][:, None])
    repeated = signature.arguments(torch.zeros(3, 4), torch.ones(3), [conditions[:, 0]])
    torch.testing.assert_close(repeated["residuals"], call(3)["residuals"])
    assert repeated["sizes"] == call(3)["sizes"]
