"""Pipelines are saved whole or not at all, and nothing that ld-pruner did not write is replaced."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoModel, DiffusionPipeline
from filelock import FileLock
from torch import nn

import ldpruner
from ldpruner.errors import StorageError
from ldpruner.pipelines.index import INDEX
from ldpruner.pruning import saving
from ldpruner.pruning.saving import LOCK, MARKER
from ldpruner.run_folder import RunFolder
from ldpruner.workflow import prune_run, score_run, select_run
from tests.pruning.conftest import assert_one_line, contents, latents, pruned_copy


@pytest.fixture
def target(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved pruned pipeline, to be replaced; `cp -r` keeps no times."""
    return Path(shutil.copytree(saved, tmp_path / "target", copy_function=shutil.copyfile))


def assert_kept(pipeline: DiffusionPipeline, folder: Path, *parts: str) -> None:
    """Saving is refused in one line, and nothing has changed."""
    before = contents(folder.parent)
    with pytest.raises(StorageError) as caught:
        ldpruner.save(pipeline, folder)
    assert_one_line(caught.value, str(folder), *parts)
    assert contents(folder.parent) == before


def test_an_earlier_save_is_replaced_whole(pruned: DiffusionPipeline, target: Path) -> None:
    (target / ".DS_Store").write_text("of macOS")
    before = contents(target)
    (copy := pruned_copy(ldpruner.load(target))).unet.requires_grad_(False)
    ldpruner.save(copy, target)
    assert torch.equal(latents(ldpruner.load(target)), latents(copy))
    assert contents(target).keys() == before.keys() - {".DS_Store"}
    assert [path.name for path in target.parent.iterdir()] == ["target"]


# What ld-pruner did not write


@pytest.mark.case(number=2)
@pytest.mark.parametrize("name", ["lora.safetensors", "unet/notes.txt", "unet/other/notes.txt"])
def test_files_of_the_user_in_a_saved_folder_are_kept(pruned: DiffusionPipeline, target: Path, name: str) -> None:
    (target / name).parent.mkdir(exist_ok=True)
    (target / name).write_text("years of work")
    assert_kept(pruned, target, name)


@pytest.mark.case(number=2)
@pytest.mark.parametrize("name", ["unet/model.safetensors", "unet/config.json", "model_index.json"])
def test_a_saved_file_that_the_user_has_changed_is_kept(pruned: DiffusionPipeline, target: Path, name: str) -> None:
    path = target / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # as long as before
    assert_kept(pruned, target, name)


@pytest.mark.case(number=2)
def test_a_pipeline_of_the_user_is_kept(pruned: DiffusionPipeline, folder: Path, tmp_path: Path) -> None:
    assert_kept(pruned, Path(shutil.copytree(folder, tmp_path / "mine")), "not saved by ld-pruner")


def test_a_folder_that_is_no_pipeline_is_kept(pruned: DiffusionPipeline, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    assert_kept(pruned, tmp_path / "thesis")


def test_a_file_is_kept(pruned: DiffusionPipeline, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("years of work")
    assert_kept(pruned, tmp_path / "notes")


@pytest.mark.parametrize("content", ["{", "[]", "null", "\xff"])
def test_a_damaged_marker_is_refused(pruned: DiffusionPipeline, target: Path, content: str) -> None:
    (target / MARKER).write_bytes(content.encode("latin-1"))
    assert_kept(pruned, target)


def test_an_empty_folder_is_filled(pruned: DiffusionPipeline, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ldpruner.save(pruned, tmp_path / "empty")
    assert torch.equal(latents(ldpruner.load(tmp_path / "empty")), latents(pruned))


# Links


@pytest.mark.case(number=3)
def test_prune_does_not_replace_a_model_behind_a_link(tiny: DiffusionPipeline, folder: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    score_run(tiny, run=run.path, probe=ldpruner.Probe(samples=2, steps=1), model=str(folder))
    select_run(run.path, ldpruner.Budget(operators=2))
    model = Path(shutil.copytree(folder, tmp_path / "model"))
    run.pruned.symlink_to(model)
    before = contents(model)
    with pytest.raises(StorageError) as caught:
        prune_run(run.path, original=tiny)
    assert_one_line(caught.value, str(run.pruned), "link", str(model))
    assert contents(model) == before


@pytest.mark.case(number=3)
def test_a_link_in_a_saved_folder_is_refused(pruned: DiffusionPipeline, target: Path, tmp_path: Path) -> None:
    shutil.move(target / "unet", tmp_path / "mine")
    (target / "unet").symlink_to(tmp_path / "mine")
    assert_kept(pruned, target, "unet")


@pytest.mark.case(number=4)
@pytest.mark.parametrize("name", [".target.partial", ".target.0123456789abcdef.partial"])
def test_nothing_is_written_or_deleted_through_a_link(
    pruned: DiffusionPipeline, tmp_path: Path, saved: Path, name: str
) -> None:
    outside, run = Path(shutil.copytree(saved, tmp_path / "outside")), tmp_path / "run"
    before = contents(outside)
    run.mkdir()
    (run / name).symlink_to(outside)
    ldpruner.save(pruned, run / "target")
    assert contents(outside) == before
    assert sorted(path.name for path in run.iterdir()) == [name, "target"]


# Whole or not at all


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("no")])
def test_a_save_that_fails_leaves_the_old_folder_intact(
    tiny: DiffusionPipeline, target: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    before = contents(target)
    pipeline = pruned_copy(tiny)
    monkeypatch.setattr(pipeline.vqvae, "save_pretrained", raising(error))  # after other parts have been written
    with pytest.raises((StorageError, KeyboardInterrupt)) as caught:
        ldpruner.save(pipeline, target)
    assert "\n" not in str(caught.value)
    assert contents(target) == before
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


@pytest.fixture
def full_disk() -> Iterator[None]:
    """The system takes no file of more than 20 kB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.case(name="full-disk")
@pytest.mark.usefixtures("full_disk")
def test_a_disk_that_takes_no_more_is_one_line(pruned: DiffusionPipeline, tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        ldpruner.save(pruned, tmp_path / "target")
    assert_one_line(caught.value, str(tmp_path / "target"), "File too large")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["/dev/null/pipeline", "/proc/ld-pruner-pipeline"])
def test_a_place_that_cannot_be_written_is_refused(pruned: DiffusionPipeline, place: str) -> None:
    with pytest.raises(StorageError) as caught:
        ldpruner.save(pruned, place)
    assert_one_line(caught.value, place)


@pytest.mark.case(number=4)
@pytest.mark.parametrize("killed_while", ["writing", "replacing"])
def test_a_killed_save_is_cleaned_up_by_the_next_one(
    pruned: DiffusionPipeline, target: Path, monkeypatch: pytest.MonkeyPatch, killed_while: str
) -> None:
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a killed process cleans up nothing
    if killed_while == "writing":
        monkeypatch.setattr(saving, "_write_marker", raising(KeyboardInterrupt()))
    else:
        rename = Path.rename
        monkeypatch.setattr(
            Path, "rename", lambda path, to: rename(path, to) if path == target else raising(KeyboardInterrupt())()
        )
    with pytest.raises(KeyboardInterrupt):
        ldpruner.save(pruned, target)
    monkeypatch.undo()
    assert len(list(target.parent.iterdir())) == 2
    ldpruner.save(pruned, target)
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_what_another_process_is_writing_is_left_alone(pruned: DiffusionPipeline, tmp_path: Path) -> None:
    other = tmp_path / ".target.0123456789abcdef.partial"
    other.mkdir()
    (other / INDEX).write_text("{}")
    with FileLock(other / LOCK):
        ldpruner.save(pruned, tmp_path / "target")
        assert (other / INDEX).exists()


KILLED = """
import os, sys, threading
import ldpruner

pipeline = ldpruner.load(sys.argv[1])
threading.Timer(float(sys.argv[3]), os._exit, (9,)).start()
while True:
    ldpruner.save(pipeline, sys.argv[2])
"""


@pytest.mark.extensive
@pytest.mark.parametrize("seconds", [0.05, 0.1, 0.15, 0.2])
def test_a_save_killed_at_any_instant_leaves_a_whole_folder_or_none(
    pruned: DiffusionPipeline, saved: Path, tmp_path: Path, seconds: float
) -> None:
    target = tmp_path / "target"
    command = [sys.executable, "-c", KILLED, str(saved), str(target), str(seconds)]
    assert subprocess.run(command, env=dict(os.environ), check=False).returncode == 9
    if target.exists():
        assert torch.equal(latents(ldpruner.load(target)), latents(pruned))
    ldpruner.save(pruned, target)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


# What could not be read again


class Quantized(torch.Tensor):
    """Stands in for the tensors of torchao and quanto."""


def with_adapter(network: Any) -> str:
    """Wraps a module as PEFT does."""
    wrapper = nn.Module()
    wrapper.add_module("base_layer", network.conv_out)
    network.conv_out = wrapper
    return "fuse"


def quantized(network: Any) -> str:
    network.conv_out.weight = nn.Parameter(network.conv_out.weight.detach().as_subclass(Quantized))
    return "quantise after loading"


def shared(network: Any) -> str:
    network.conv_norm_out.weight = network.conv_norm_out.bias
    return "conv_norm_out.bias and conv_norm_out.weight share"


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(with_adapter, marks=pytest.mark.case(number=43)),
        pytest.param(quantized, marks=pytest.mark.case(number=47)),
        pytest.param(shared, marks=pytest.mark.case(name="shared-weights")),
    ],
)
@pytest.mark.parametrize("is_pruned", [True, False])
def test_weights_that_could_not_be_read_again_are_refused(
    fresh: DiffusionPipeline, tmp_path: Path, spoil: Callable[[Any], str], is_pruned: bool
) -> None:
    pipeline = pruned_copy(fresh) if is_pruned else fresh
    advice = spoil(pipeline.unet)
    with pytest.raises(StorageError) as caught:
        ldpruner.save(pipeline, tmp_path / "target")
    assert_one_line(caught.value, advice)
    assert not list(tmp_path.iterdir())


# What the index holds


@pytest.mark.case(number=49)
def test_automodel_opens_the_pruned_network(
    saved: Path, pruned: DiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    network = AutoModel.from_pretrained(str(saved), subfolder="unet", trust_remote_code=True)
    state = pruned.unet.state_dict()
    assert list(network.state_dict()) == list(state)
    assert all(torch.equal(weight, state[name]) for name, weight in network.state_dict().items())
    assert type(network).__name__ == "PrunedUNet2DModel"


def test_an_unpruned_pipeline_has_no_code_in_its_index(tiny: DiffusionPipeline, tmp_path: Path) -> None:
    ldpruner.save(tiny, tmp_path / "plain")
    assert "auto_map" not in json.loads((tmp_path / "plain" / "model_index.json").read_text())
