"""A plan is put on another checkpoint, and saved."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.errors import PlanMismatch, StorageError
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pruning.applying import Application, apply_plan, preview_plan
from tests.pruning.conftest import contents, latents


@pytest.fixture(scope="module")
def plan(scores: ldpruner.Scores) -> ldpruner.Plan:
    return ldpruner.select(scores, ldpruner.Budget(parameters=0.8))


@pytest.fixture(scope="module")
def other(tiny: DiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another checkpoint of the tiny pipeline, on disk."""
    pipeline = copy.deepcopy(tiny)
    with torch.no_grad():
        for weight in pipeline.unet.parameters():
            weight.add_(0.01)
    folder = tmp_path_factory.mktemp("other") / "model"
    pipeline.save_pretrained(folder)
    return folder


@pytest.mark.case(number=51)
def test_a_plan_on_another_checkpoint_is_saved_as_prune_and_save_would(
    plan: ldpruner.Plan, other: Path, tmp_path: Path
) -> None:
    application = apply_plan(plan, str(other), tmp_path / "out", device="cpu")
    expected = ldpruner.prune(ldpruner.load(other), plan)
    saved = ldpruner.load(tmp_path / "out")
    assert torch.equal(latents(saved), latents(expected))
    assert application == Application(
        model=str(other),
        pipeline="LDMPipeline",
        component="unet",
        network="UNet2DModel",
        removals=len(plan.removed),
        original_parameters=count_parameters(ldpruner.load(other).unet),
        parameters=count_parameters(expected.unet),
        folder=tmp_path / "out",
    )
    apply_plan(plan, str(other), tmp_path / "out", device="cpu", dtype="float16")
    assert next(ldpruner.load(tmp_path / "out", torch_dtype=torch.float16).unet.parameters()).dtype == torch.float16


def test_a_preview_says_the_same_and_reads_and_writes_nothing(
    plan: ldpruner.Plan, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied = apply_plan(plan, str(other), tmp_path / "out", device="cpu")
    before = contents(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("safetensors.safe_open", fail)
    assert preview_plan(plan, str(other), tmp_path / "out") == applied
    assert contents(tmp_path) == before


def test_a_plan_of_another_machine_says_so_in_the_result_and_once_in_the_log(
    scores: ldpruner.Scores, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = ldpruner.select(scores, ldpruner.Budget(latency=0.8))
    assert plan.machine is not None
    elsewhere = plan.replace(machine=plan.machine.replace(device="NVIDIA H200", threads=None))
    with caplog.at_level("WARNING"):
        application = apply_plan(elsewhere, str(folder), tmp_path / "out", device="cpu")
    assert "NVIDIA H200" in application.note
    assert caplog.messages == [application.note]


@pytest.mark.parametrize("apply", [apply_plan, preview_plan])
def test_what_cannot_be_applied_is_refused_and_nothing_is_written(
    apply: object, plan: ldpruner.Plan, folder: Path, tmp_path: Path
) -> None:
    assert callable(apply)
    with pytest.raises(PlanMismatch, match="'transformer'"):
        apply(plan, str(folder), tmp_path / "out", component="transformer")
    with pytest.raises(PlanMismatch, match="it has no"):
        apply(plan, str(folder), tmp_path / "out", component="vqvae")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("kept")
    with pytest.raises(StorageError, match="not saved by ld-pruner"):
        apply(plan, str(folder), tmp_path / "mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "file"]
