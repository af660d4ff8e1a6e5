"""A pruned tiny pipeline, exported once to each format."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DiffusionPipeline, UNet2DModel

import ldpruner
from ldpruner.pipelines.sessions import FILES
from tests.pruning.conftest import pruned_copy

PROBE = ldpruner.Probe(samples=2, steps=3)


@pytest.fixture(scope="session")
def pruned(tiny: DiffusionPipeline) -> DiffusionPipeline:
    """Pruned by stand-ins of every kind."""
    return pruned_copy(tiny)


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=[pytest.mark.extensive] if name == "openvino" else []) for name in FILES],
)
def exported(request: Any, pruned: DiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each format; not to be changed."""
    folder = tmp_path_factory.mktemp("exported") / request.param
    ldpruner.export(pruned, folder, request.param, probe=PROBE)
    return Path(folder)


@pytest.fixture
def smallest() -> DiffusionPipeline:
    """A pipeline whose denoiser is exported in a second."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=4,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(4,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=2,
        add_attention=False,
    )
    return DDPMPipeline(unet.eval(), DDIMScheduler(clip_sample=False))
