"""The model_index.json of a folder is read as diffusers reads it, and what it lacks is said in one line."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ldpruner
from ldpruner.errors import PipelineNotFound
from ldpruner.pipelines.index import index_components
from ldpruner.pruning.serialization import load_meta
from tests.families import FAMILIES

Edit = Callable[..., Path]


@pytest.fixture
def edited(folder: Path, tmp_path: Path) -> Edit:
    """Copies the folder of a pipeline, with entries of its index replaced."""

    def edit(**entries: Any) -> Path:
        target: Path = shutil.copytree(folder, tmp_path / "model")
        index = json.loads((target / "model_index.json").read_text())
        (target / "model_index.json").write_text(json.dumps({**index, **entries}))
        return target

    return edit


def assert_refused(target: Path, *parts: str) -> None:
    for open_folder in (ldpruner.load, load_meta):
        with pytest.raises(PipelineNotFound) as caught:
            open_folder(target)
        assert "\n" not in str(caught.value)
        assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.case(name="krea-2")
@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_a_list_of_two_numbers_is_a_setting(tmp_path: Path) -> None:
    FAMILIES["krea-2"].pipeline().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["text_encoder_select_layers"] == [0, 1]
    assert "text_encoder_select_layers" not in index_components(tmp_path)
    for pipeline in (ldpruner.load(tmp_path), load_meta(tmp_path)):
        assert tuple(pipeline.config["text_encoder_select_layers"]) == (0, 1)


@pytest.mark.case(name="generic-class")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("DiffusionPipeline", "cannot be run; name the class of the pipeline"),
        ("UNet2DModel", "cannot be run"),
        (["my_pipeline", "MyPipeline"], "is code of its folder and is not run"),
        ("ConsisIDPipeline", "needs "),
        ("ModularPipeline", "cannot be run"),
    ],
)
def test_what_is_no_pipeline_of_diffusers_is_refused(edited: Edit, name: Any, words: str) -> None:
    assert_refused(edited(_class_name=name), "names pipeline class", repr(name), words)


@pytest.mark.case(name="missing-folder")
@pytest.mark.parametrize("component", ["unet", "scheduler", "vqvae"])
def test_a_missing_folder_is_named(edited: Edit, component: str) -> None:
    target = edited()
    shutil.rmtree(target / component)
    assert_refused(target, f"{target / component} is missing")


@pytest.mark.case(name="index-entries")
@pytest.mark.parametrize("entry", [None, [], ["diffusers"], "diffusers", {"a": 1}, ["a", "b", "c"], 3])
def test_an_entry_that_is_no_component_is_refused(edited: Edit, entry: Any) -> None:
    assert_refused(edited(scheduler=entry), f"scheduler is {json.dumps(entry)}", "[library, class]")


def test_a_component_of_nulls_is_left_out(edited: Edit) -> None:
    target = edited(vqvae=[None, None])
    assert set(index_components(target)) == {"unet", "scheduler"}
    assert load_meta(target).vqvae is None


def test_what_the_constructor_does_not_take_is_no_component(edited: Edit) -> None:
    assert "painter" not in index_components(edited(painter=["os", "system"]))


def test_the_import_of_a_pipeline_says_nothing_of_packages_that_are_not_needed() -> None:
    """In a process of its own, as a class is imported once."""
    code = "import ldpruner; ldpruner.load('zoo:emoji')"
    opened = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "requires torchvision" not in opened.stderr
