"""Pipelines without weights: built from configuration files, and run for their shapes."""

import json
import shutil
from pathlib import Path

import pytest

import ldpruner
from ldpruner.errors import PipelineNotFound
from ldpruner.pipelines import find_denoiser
from ldpruner.saving import load_weightless
from ldpruner.weightless import is_weightless

ARCHITECTURES = Path(__file__).parent / "architectures"


@pytest.mark.parametrize("fixture", ["tiny", "tiny_text", "tiny_transformer"])
def test_a_pipeline_is_the_same_without_its_weights(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pipeline = request.getfixturevalue(fixture)
    pipeline.save_pretrained(tmp_path)
    for weights in tmp_path.glob("*/*.safetensors"):
        weights.unlink()
    weightless = load_weightless(tmp_path)
    assert type(weightless) is type(pipeline)
    assert is_weightless(weightless)
    assert not is_weightless(pipeline)
    assert ldpruner.find_operators(weightless) == ldpruner.find_operators(pipeline)


def test_running_leaves_the_pipeline_as_it_was(folder: Path) -> None:
    weightless = load_weightless(folder)
    before = type(weightless)
    for _ in range(2):
        assert find_denoiser(weightless).component == "unet"
    assert type(weightless) is before
    modules = [module for part in (weightless.unet, weightless.vqvae) for module in part.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    assert all(weight.is_meta for weight in weightless.unet.parameters())


def test_a_published_configuration_without_a_vocabulary_gets_tokens_of_the_right_shape() -> None:
    pipeline = load_weightless(ARCHITECTURES / "stable-diffusion-v1-4")
    tokens = pipeline.tokenizer(["a cat"], padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert tokens.shape == (1, 77)
    assert pipeline.safety_checker is None


def test_a_pipeline_without_weights_is_no_pipeline_to_load(tmp_path: Path) -> None:
    target = shutil.copytree(ARCHITECTURES / "ldm-celebahq-256", tmp_path / "model")
    with pytest.raises(PipelineNotFound) as caught:
        ldpruner.load(target)
    assert "\n" not in str(caught.value)
    assert str(target) in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "seen"),
    [
        (["os", "system"], "'os'"),
        (["subprocess", "Popen"], "'subprocess'"),
        (["diffusers", 3], "unet"),
    ],
)
def test_a_component_of_a_foreign_library_is_not_imported(
    folder: Path, tmp_path: Path, entry: list[object], seen: str
) -> None:
    target = shutil.copytree(folder, tmp_path / "model")
    index = json.loads((target / "model_index.json").read_text())
    index["unet"] = entry
    (target / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(PipelineNotFound) as caught:
        load_weightless(target)
    assert "\n" not in str(caught.value)
    if seen != "unet":
        assert seen in str(caught.value)


@pytest.mark.parametrize("missing", ["unet/config.json", "scheduler/scheduler_config.json", "vqvae/config.json"])
def test_a_missing_configuration_is_told(folder: Path, tmp_path: Path, missing: str) -> None:
    target = shutil.copytree(folder, tmp_path / "model")
    (target / missing).unlink()
    with pytest.raises(PipelineNotFound) as caught:
        load_weightless(target)
    assert "\n" not in str(caught.value)
    assert str(target) in str(caught.value)


def test_an_unknown_pipeline_class_is_told(folder: Path, tmp_path: Path) -> None:
    target: Path = shutil.copytree(folder, tmp_path / "model")
    path = target / "model_index.json"
    path.write_text(path.read_text().replace("LDMPipeline", "TeaPotPipeline"))
    with pytest.raises(PipelineNotFound, match="'TeaPotPipeline'"):
        load_weightless(target)


def test_the_recorded_call_has_the_shapes_of_a_real_one(folder: Path) -> None:
    denoiser = find_denoiser(load_weightless(folder))
    assert [argument.shape for argument in denoiser.arguments if argument.ndim] == [(1, 4, 8, 8)]
    assert denoiser.rows == 1


def test_the_public_names_are_these() -> None:
    assert ldpruner.__all__ == sorted(ldpruner.__all__, key=lambda name: (name.islower(), name))
    assert set(ldpruner.__all__) == {
        "Budget",
        "LdPrunerError",
        "Operator",
        "Plan",
        "Probe",
        "Score",
        "Scores",
        "find_operators",
        "load",
        "prune",
        "prune_",
        "save",
        "score_operators",
        "select",
    }
    assert all(getattr(ldpruner, name) for name in ldpruner.__all__)
    assert issubclass(PipelineNotFound, ldpruner.LdPrunerError)
