"""What is pushed arrives in one commit, and opens again from there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, DiTTransformer2DModel

import ldpruner
from ldpruner.errors import PlanMismatch, PublishingError, StorageError
from ldpruner.operators.choosing import find_operators
from ldpruner.operators.discovery import Removal
from ldpruner.publishing.hub import push, write_publication
from ldpruner.selection.plan import PlannedRemoval
from tests.hub_server import TOKEN, Hub
from tests.pruning.conftest import contents, latents

REPO = "somebody/pruned"

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # huggingface_hub's own, of its HTTP library


@pytest.mark.extensive
def test_a_push_is_one_commit_that_opens_again_with_the_libraries_own_code(
    hub: Hub, run: Path, tmp_path: Path
) -> None:
    published = push(run, REPO)
    repository = hub.repositories[REPO]
    (commit,) = repository.commits
    assert commit.summary == "Upload a pruned LDMPipeline"
    assert commit.added == set(published.files) == set(repository.branches["main"])
    assert published.url is not None
    assert published.url.startswith(f"{hub.url}/{REPO}/commit/")
    assert hub.large_files  # some went as large files
    assert not repository.private

    expected = latents(ldpruner.load(run / "pruned"))
    folder = repository.write(tmp_path / "received")
    assert torch.equal(latents(ldpruner.load(folder)), expected)
    by_code = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    assert torch.equal(latents(by_code), expected)
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(folder)
    assert ldpruner.Plan.read(folder) == ldpruner.Plan.read(run)


@pytest.mark.extensive
def test_a_pushed_pipeline_opens_by_its_name(hub: Hub, run: Path) -> None:
    push(run, REPO)
    expected = latents(ldpruner.load(run / "pruned"))
    by_code = DiffusionPipeline.from_pretrained(REPO, trust_remote_code=True)
    assert torch.equal(latents(by_code), expected)
    assert torch.equal(latents(ldpruner.load(REPO)), expected)


def test_a_native_pipeline_opens_by_its_name_without_any_code(
    hub: Hub, tiny_transformer: DiffusionPipeline, tmp_path: Path
) -> None:
    (operator,) = [each for each in find_operators(tiny_transformer) if each.name == "transformer_blocks.1"]
    plan = ldpruner.Plan(removed=(PlannedRemoval(removal=operator.candidates[0].removal),), component="transformer")
    pruned = ldpruner.prune(tiny_transformer, plan)
    plan.write(tmp_path / "plan.json")
    ldpruner.save(pruned, tmp_path / "pruned")
    push(tmp_path, REPO, base_model="owner/base")
    card = hub.repositories[REPO].branches["main"]["README.md"].decode()
    assert f'DiffusionPipeline.from_pretrained("{REPO}")' in card
    assert "trust_remote_code" not in card
    opened = DiffusionPipeline.from_pretrained(REPO)
    assert type(opened.transformer) is DiTTransformer2DModel
    assert torch.equal(latents(opened), latents(pruned))


def test_no_lock_no_marker_no_store_and_no_path_of_this_machine_is_published(
    hub: Hub, run: Path, tmp_path: Path
) -> None:
    for name in (".DS_Store", ".writing", "unet/.cache"):
        (run / "pruned" / name).write_text("private")
    push(run, REPO)
    files = hub.repositories[REPO].branches["main"]
    assert {"README.md", "plan.json", "LICENSE", "model_index.json", "samples/sheet.png"} <= files.keys()
    assert not [name for name in files if any(part.startswith(".") for part in name.split("/"))]
    assert not [name for name in files if name.endswith((".sqlite", ".lock"))]
    assert not [name for name, content in files.items() if str(tmp_path.parent).encode() in content]


def test_a_second_push_deletes_what_is_no_longer_part_and_keeps_what_others_added(hub: Hub, run: Path) -> None:
    push(run, REPO)
    files = hub.repositories[REPO].branches["main"]
    files |= {"unet/old.safetensors": b"old", "notes.md": b"kept", "other/file": b"kept", ".gitattributes": b"kept"}
    push(run, REPO)
    assert hub.repositories[REPO].commits[1].deleted == {"unet/old.safetensors"}
    assert {"notes.md", "other/file", ".gitattributes"} <= files.keys()


def test_a_branch_and_a_private_repository_are_made(hub: Hub, run: Path) -> None:
    published = push(run, "small", revision="v2", private=True)
    assert published.repo == "somebody/small"
    repository = hub.repositories["somebody/small"]
    assert repository.private
    assert repository.branches["main"] == {}
    card = repository.branches["v2"]["README.md"].decode()
    assert 'from_pretrained("somebody/small", revision="v2", trust_remote_code=True)' in card


def test_a_dry_run_writes_the_same_files_and_calls_nobody(hub: Hub, run: Path, tmp_path: Path) -> None:
    written = write_publication(run, REPO)
    assert hub.requests == []
    assert (written.folder, written.url) == (run / "hub", None)
    assert set(written.files) == contents(run / "hub").keys() - {".ldpruner.json"}
    files = {name: content for name, content in contents(run / "hub").items() if name != ".ldpruner.json"}
    push(run, REPO)
    assert files == hub.repositories[REPO].branches["main"]
    write_publication(run, REPO)  # replaced
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("kept")
    with pytest.raises(StorageError, match="not saved by ld-pruner"):
        write_publication(run, REPO, tmp_path / "mine")


@pytest.mark.parametrize("token", ["wrong", ""])
def test_a_refusal_is_one_line_that_says_how_to_log_in(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, token: str, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PublishingError) as caught:
        push(run, REPO)
    assert "\n" not in str(caught.value)
    assert "hf auth login" in str(caught.value)
    assert hub.repositories == {}


def test_offline_nothing_is_tried(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PublishingError, match="offline"):
        push(run, REPO)
    assert hub.requests == []


def test_what_is_wrong_is_refused_before_the_hub_is_asked(hub: Hub, run: Path) -> None:
    with pytest.raises(PublishingError, match="'a/b/c' is no repository"):
        push(run, "a/b/c")
    with pytest.raises(PublishingError, match="owner/name"):
        push(run, REPO, base_model="/home/me/model")
    plan = ldpruner.Plan.read(run)
    other = PlannedRemoval(removal=Removal(operator="conv_out", modification="identity"))
    plan.replace(removed=(*plan.removed, other)).write(run / "plan.json")
    with pytest.raises(PlanMismatch, match=r"removes 'conv_out', but .*pruned has it; prune again"):
        push(run, REPO)
    assert plan.predicted is not None
    smaller = plan.predicted.replace(parameters=plan.predicted.parameters - 0.01)
    plan.replace(predicted=smaller).write(run / "plan.json")
    with pytest.raises(PlanMismatch, match=r"the plan leaves .* parameters, but"):
        push(run, REPO)
    assert hub.requests == []


@pytest.mark.extensive
def test_the_command_pushes_to_the_endpoint_of_the_environment(hub: Hub, run: Path, tmp_path: Path) -> None:
    """In a process of its own, as a user starts it."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    words = ("push", "--run", str(run), "--repo", REPO, "--json", "--quiet")
    command = [sys.executable, "-m", "ldpruner", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert set(answer["files"]) == set(hub.repositories[REPO].branches["main"])
    assert "it/s" not in done.stderr
    assert "B/s" not in done.stderr
