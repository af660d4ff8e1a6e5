"""Pipelines without weights are built from configuration files and run for their shapes."""

import functools
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from PIL import Image
from torch import nn

import ldpruner
from ldpruner.errors import PipelineNotFound
from ldpruner.operators.discovery import Operator, operators_of
from ldpruner.operators.names import ancestors
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pipelines.meta import is_meta, shapes_only, special_class
from ldpruner.pruning.serialization import load_meta

ARCHITECTURES = Path(__file__).parents[1] / "architectures"
# Millions of parameters of the denoiser, as published.
PUBLISHED = {
    "animatediff-v1-5-2": 860 + 453,  # the U-Net of Stable Diffusion and the motion modules
    "audioldm2": 346,
    "dit-xl-2-256": 675 + 27 * 2.78,  # diffusers gives each block its own embedding of the step and the class
    "flux-1-dev": 11_901,
    "hunyuandit-v1.2": 1_500,
    "ltx-video": 1_923,
    "pixart-xl-2-1024-ms": 611,
    "sana-1600m-1024px": 1_604,
    "stable-audio-open-1.0": 1_057,
    "stable-diffusion-2-1": 866,
    "stable-diffusion-3-medium": 2_028,
    "stable-diffusion-v1-5-controlnet": 860,
    "stable-video-diffusion-img2vid": 1_525,
    "wan2.1-t2v-14b": 14_288,
    "wan2.2-t2v-a14b": 14_288,
}
IN_DEFAULT_RUN = {"dit-xl-2-256"}  # `make test-extensive` runs the others
SIZES_IN_DEFAULT_RUN = {"flux-1-dev", "audioldm2", "stable-audio-open-1.0", "animatediff-v1-5-2"}
DUPLICATES = {  # have the denoiser of another folder, or one of its structure
    "stable-diffusion-2-1",
    "stable-diffusion-v1-5-controlnet",
    "wan2.2-t2v-a14b",
}
BRANCHES = ("Attention", "FeedForward", "GLUMBConv")


def of_diffusers(test: Callable[..., None]) -> Callable[..., None]:
    """Ignores the warnings of diffusers' own code: its Euler scheduler and its audio autoencoder."""
    for warning in ("__array__ implementation:DeprecationWarning", ".*weight_norm:FutureWarning"):
        test = pytest.mark.filterwarnings(f"ignore:{warning}")(test)
    return test


@functools.cache
def discovered(name: str) -> tuple[nn.Module, tuple[Operator, ...], float]:
    """The denoiser of a published pipeline, its operators, and the seconds of this process that it took."""
    start = time.process_time()
    denoiser = find_denoiser(load_meta(ARCHITECTURES / name), call={"image": Image.new("RGB", (512, 512))})
    return denoiser.module, operators_of(denoiser), time.process_time() - start


@of_diffusers
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in SIZES_IN_DEFAULT_RUN else pytest.mark.extensive)
        for name in sorted(PUBLISHED)
    ],
)
def test_a_published_denoiser_has_its_published_size(name: str) -> None:
    pipeline = load_meta(ARCHITECTURES / name)
    denoiser = pipeline.unet if "unet" in pipeline.components else pipeline.transformer
    assert count_parameters(denoiser) / 1e6 == pytest.approx(PUBLISHED[name], rel=0.003)


@of_diffusers
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in IN_DEFAULT_RUN else pytest.mark.extensive)
        for name in sorted(PUBLISHED.keys() - DUPLICATES)
    ],
)
def test_every_attention_and_feed_forward_of_a_published_denoiser_can_be_removed(name: str) -> None:
    denoiser, operators, _ = discovered(name)
    modifications = {operator.name: operator.modifications for operator in operators}
    branches = [name for name, module in denoiser.named_modules() if type(module).__name__.endswith(BRANCHES)]
    assert len(branches) > 10
    assert [name for name in branches if not can_be_removed(name, modifications)] == []


def can_be_removed(name: str, modifications: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether a module can become zero, or it or a module around it the identity."""
    is_branch = "zero" in modifications.get(name, ())
    return is_branch or any("identity" in modifications.get(module, ()) for module in ancestors(name))


@pytest.mark.extensive
@pytest.mark.parametrize("name", ["flux-1-dev", "wan2.1-t2v-14b"])
def test_a_large_pipeline_is_read_in_seconds(name: str) -> None:
    assert discovered(name)[2] < 20  # of a processor that other work may slow to half


def test_a_network_may_be_reached_past_its_own_call() -> None:
    network = nn.Linear(2, 3, device="meta")
    with shapes_only():
        result = network.weight @ torch.ones(2)
        target = torch.ones(3)
        assert result.is_meta
        assert result.sum().item() == 0
        assert result.to("cpu", torch.int64, non_blocking=True).tolist() == [0, 0, 0]
        assert target.copy_(result) is target


def test_a_tokenizer_without_a_vocabulary_keeps_its_class_and_ends_each_text() -> None:
    pipeline = load_meta(ARCHITECTURES / "audioldm2")
    assert isinstance(pipeline.tokenizer_2, transformers.T5TokenizerFast)
    assert pipeline.tokenizer_2("", return_tensors="pt").input_ids.shape == (1, 1)


def test_an_image_processor_is_built_where_it_has_a_configuration() -> None:
    pipeline = load_meta(ARCHITECTURES / "stable-video-diffusion-img2vid")
    assert pipeline.feature_extractor.crop_size["height"] == 224


@pytest.mark.parametrize("fixture", ["tiny", "tiny_text", "tiny_transformer"])
def test_a_pipeline_is_the_same_without_its_weights(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pipeline = request.getfixturevalue(fixture)
    pipeline.save_pretrained(tmp_path)
    for weights in tmp_path.glob("*/*.safetensors"):
        weights.unlink()
    meta = load_meta(tmp_path)
    assert type(meta) is type(pipeline)
    assert is_meta(meta)
    assert not is_meta(pipeline)
    assert ldpruner.find_operators(meta) == ldpruner.find_operators(pipeline)


def test_running_on_the_meta_device_leaves_the_pipeline_as_it_was(folder: Path) -> None:
    meta = load_meta(folder)
    before = type(meta)
    for _ in range(2):
        assert find_denoiser(meta).component == "unet"
    assert type(meta) is before
    modules = [module for network in (meta.unet, meta.vqvae) for module in network.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    assert all(weight.is_meta for weight in meta.unet.parameters())


def test_a_published_configuration_without_a_vocabulary_gets_tokens_of_the_right_shape() -> None:
    pipeline = load_meta(ARCHITECTURES / "stable-diffusion-v1-4")
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
        load_meta(target)
    assert "\n" not in str(caught.value)
    if seen != "unet":
        assert seen in str(caught.value)


@pytest.mark.parametrize("missing", ["unet/config.json", "scheduler/scheduler_config.json", "vqvae/config.json"])
def test_a_missing_configuration_is_refused(folder: Path, tmp_path: Path, missing: str) -> None:
    target = shutil.copytree(folder, tmp_path / "model")
    (target / missing).unlink()
    with pytest.raises(PipelineNotFound) as caught:
        load_meta(target)
    assert "\n" not in str(caught.value)
    assert str(target) in str(caught.value)


def test_an_unknown_pipeline_class_is_refused(folder: Path, tmp_path: Path) -> None:
    target: Path = shutil.copytree(folder, tmp_path / "model")
    path = target / "model_index.json"
    path.write_text(path.read_text().replace("LDMPipeline", "TeaPotPipeline"))
    with pytest.raises(PipelineNotFound, match="'TeaPotPipeline'"):
        load_meta(target)


def test_the_recorded_call_has_the_shapes_of_a_real_one(folder: Path) -> None:
    denoiser = find_denoiser(load_meta(folder))
    assert [argument.shape for argument in denoiser.arguments if argument.ndim] == [(1, 4, 8, 8)]
    assert denoiser.rows == 1


def test_a_network_class_of_one_pipeline_alone_can_have_been_pruned() -> None:
    assert diffusers.LTXLatentUpsamplePipeline.__name__  # which imports the class
    name = "LTXLatentUpsamplerModel"
    assert not hasattr(diffusers, name)
    assert special_class(f"pruned{name.lower()}", f"Pruned{name}").__bases__[0].__name__ == name
    with pytest.raises(PipelineNotFound, match="no network class 'TeaPotModel'"):
        special_class("prunedteapotmodel", "PrunedTeaPotModel")
