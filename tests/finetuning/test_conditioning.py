"""Call signatures: how each kind of pipeline calls its denoiser."""

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import ldpruner
from ldpruner.errors import FinetuningError
from ldpruner.finetuning.conditioning import named_arguments, watch_call_signature
from ldpruner.finetuning.trainer import Finetuning
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
)
REFUSED = {
    "stable-diffusion-controlnet": "change from step to step",
    "wan-two-denoisers-2": "two denoisers",
    "stable-cascade": "objective that is not supported",
    "consistency": "objective that is not supported",
    "latent-upscaler": "noise levels of its own",
    "text-to-video": "for latents",
    "amused": "no latents and timestep",
    "qwen-image": "lists that grow",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SUPPORTED)
def test_a_call_is_repeated_as_the_pipeline_makes_it(name: str) -> None:
    family = FAMILIES[name]
    pipeline = family.pipeline()
    probe = ldpruner.Probe(samples=3, steps=3, prompts=family.prompts, call=dict(family.call))
    component = find_denoiser(pipeline, family.component, probe.arguments(pipeline, [0])).component
    signature = watch_call_signature(pipeline, component, probe, batches=True)
    recorded = named_arguments(find_denoiser(pipeline, component, probe.arguments(pipeline, [1, 2])))
    inputs = recorded[signature.sample]
    time = float(torch.as_tensor(recorded[signature.time]).flatten()[0])
    level = (time - signature.shift) / signature.scale
    for copy in range(signature.copies):
        rows = slice(2 * copy, 2 * copy + 2)
        latents = inputs[rows]
        if signature.appended is not None:
            latents = latents.narrow(signature.appended, 0, signature.latents[signature.appended - 1])
        conditions = [tensor[:, copy] for tensor in signature.conditions([recorded], 2)]
        repeated = signature.arguments(latents, torch.full((2,), level), conditions)
        assert repeated.keys() == recorded.keys()
        torch.testing.assert_close(repeated[signature.sample], inputs[rows])
        for leaf, wanted in zip(pytree.tree_leaves(repeated), pytree.tree_leaves(recorded), strict=True):
            if isinstance(leaf, Tensor) and wanted.ndim and len(wanted) == len(inputs):
                torch.testing.assert_close(leaf, wanted[rows].to(leaf.dtype), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_an_unsupported_pipeline_is_refused_in_one_line(name: str) -> None:
    family = FAMILIES[name]
    probe = ldpruner.Probe(samples=4, steps=3, prompts=family.prompts, call=dict(family.call))
    with pytest.raises(FinetuningError, match=REFUSED[name]) as caught:
        Finetuning(family.pipeline(), family.pipeline(), probe=probe, component=family.component)
    assert "\n" not in str(caught.value)
