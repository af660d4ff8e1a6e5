"""Exported networks in the place of torch ones: what a pipeline reads of them, and what they refuse."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DModel

import ldpruner
from ldpruner.errors import ExportError, LdPrunerError, PipelineNotFound, UnsafeFile
from ldpruner.pipelines.exported import DESCRIPTION, ExportedNetwork
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pipelines.sampling import sample_latents
from tests.exporting.conftest import PROBE
from tests.pruning.conftest import some_plan

pytestmark = pytest.mark.extensive


@pytest.fixture(scope="module")
def folder(tiny: DiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "pipeline"
    ldpruner.export(tiny, path, "torch-export", probe=PROBE)
    return path


@pytest.fixture
def pipeline(folder: Path) -> DiffusionPipeline:
    return ldpruner.load(folder, trust_programs=True)


def test_it_passes_for_the_network_without_its_memory(pipeline: DiffusionPipeline, tiny: DiffusionPipeline) -> None:
    unet: Any = pipeline.unet
    assert isinstance(unet, UNet2DModel)
    assert isinstance(unet, ExportedNetwork)
    assert count_parameters(unet) == count_parameters(tiny.unet)
    assert sum(weight.untyped_storage().nbytes() for weight in unet.parameters()) < 2000


def test_a_copy_shares_the_runtime_and_still_takes_no_memory(pipeline: DiffusionPipeline) -> None:
    duplicate = copy.deepcopy(pipeline)
    assert torch.equal(sample_latents(duplicate, PROBE, [0]), sample_latents(pipeline, PROBE, [0]))
    assert sum(weight.untyped_storage().nbytes() for weight in duplicate.unet.parameters()) < 2000


def test_another_dtype_around_it_gives_latents_of_that_dtype(
    pipeline: DiffusionPipeline, tiny: DiffusionPipeline
) -> None:
    pipeline.to(torch.float64)
    assert pipeline.unet.dtype is torch.float32
    sample = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    output = pipeline.unet(sample, 3).sample
    assert output.dtype is torch.float64
    assert torch.allclose(output.float(), tiny.unet(sample.float(), 3).sample, atol=1e-5)


def test_nothing_is_pruned_or_scored(pipeline: DiffusionPipeline, tiny: DiffusionPipeline) -> None:
    plan = some_plan(tiny)
    for prune in (ldpruner.prune, ldpruner.prune_):
        with pytest.raises(ExportError, match="UNet2DModel is exported and cannot be changed"):
            prune(pipeline, plan)
    with pytest.raises(ExportError, match="is exported"):
        ldpruner.score_operators(pipeline, probe=PROBE)


def test_changed_modules_are_an_error_and_not_ignored(pipeline: DiffusionPipeline) -> None:
    pipeline.unet.conv_out = torch.nn.Identity()
    with pytest.raises(ExportError, match="changes of its modules have no effect"):
        pipeline.unet(torch.zeros(1, 4, 8, 8), 3)


def test_a_program_that_can_run_code_is_not_opened_unasked(folder: Path) -> None:
    with pytest.raises(UnsafeFile, match="trust_programs=True"):
        ldpruner.load(folder)


@pytest.mark.parametrize("content", ["", "{}", "[]", json.dumps({"format": "tflite"})])
def test_a_damaged_description_is_one_line(folder: Path, tmp_path: Path, content: str) -> None:
    for path in folder.rglob("*.json"):
        target = tmp_path / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (tmp_path / "unet" / DESCRIPTION).write_text(content)
    with pytest.raises(PipelineNotFound, match="export again") as caught:
        ldpruner.load(tmp_path, trust_programs=True)
    assert isinstance(caught.value, LdPrunerError)
    assert "\n" not in str(caught.value)
