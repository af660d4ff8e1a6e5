"""Pipelines are opened exactly, strictly and without pickles."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel, UNet2DModel
from diffusers.pipelines.pipeline_loading_utils import is_safetensors_compatible, variant_compatible_siblings
from safetensors.torch import load_file, save_file

import ldpruner
from ldpruner.errors import LdPrunerError, PipelineNotFound, UnsafeFile
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pruning.serialization import load_meta
from tests.families import FAMILIES
from tests.pruning.conftest import PROBE, assert_one_line, latents, pruned_copy


@pytest.fixture
def broken(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved pruned pipeline, to be broken."""
    return Path(shutil.copytree(saved, tmp_path / "broken"))


@pytest.fixture
def broken_plain(folder: Path, tmp_path: Path) -> Path:
    """A copy of the saved original pipeline, to be broken."""
    return Path(shutil.copytree(folder, tmp_path / "plain"))


def half(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """The pipeline with its weights rounded to float16, and kept so."""
    return pipeline.to(torch.float16)


# Opens folders with nothing but diffusers, and saves the outputs of their denoisers.
ELSEWHERE = """
import sys


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ldpruner":
            raise ImportError(name)


sys.meta_path.insert(0, Blocked())
import torch
from diffusers import DiffusionPipeline

for place in sys.argv[1:]:
    dtype = torch.float16 if "half" in place else None
    pipeline = DiffusionPipeline.from_pretrained(place, trust_remote_code=True, torch_dtype=dtype)
    inputs = torch.load(place + ".inputs.pt", weights_only=True)
    with torch.no_grad():
        torch.save(pipeline.unet(**inputs, return_dict=False)[0], place + ".outputs.pt")
    if dtype is None:
        seeds = torch.load(place + ".seeds.pt", weights_only=True)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        text = {"prompt": ["a cat", "the sea"]} if "text" in place else {"batch_size": 2}
        last = []
        step = pipeline.scheduler.step
        pipeline.scheduler.step = lambda *a, **k: last.append(step(*a, **k)) or last[-1]
        pipeline(num_inference_steps=2, generator=generators, output_type="np", **text)
        final = last[-1]
        torch.save(final[0] if isinstance(final, tuple) else final.prev_sample, place + ".latents.pt")
assert "ldpruner" not in sys.modules
"""


def recorded_call(pipeline: DiffusionPipeline, dtype: torch.dtype) -> dict[str, Any]:
    """A call of the denoiser that another process can repeat."""
    generator = torch.Generator().manual_seed(7)
    call = {"sample": torch.randn(2, 4, 8, 8, generator=generator).to(dtype), "timestep": torch.tensor(500)}
    if "text_encoder" in pipeline.components:
        call["encoder_hidden_states"] = torch.randn(2, 8, 16, generator=generator).to(dtype)
    return call


@pytest.mark.extensive  # tests/test_families.py opens folders elsewhere in the default run
def test_a_folder_opens_exactly_where_ldpruner_is_not_installed(
    tiny: DiffusionPipeline, tiny_text: DiffusionPipeline, tmp_path: Path
) -> None:
    pipelines = {"plain": pruned_copy(tiny), "text": pruned_copy(tiny_text)}
    pipelines["half"] = half(copy.deepcopy(pipelines["plain"]))
    expected = {}
    for name, pipeline in pipelines.items():
        ldpruner.save(pipeline, tmp_path / name)
        call = recorded_call(pipeline, torch.float16 if name == "half" else torch.float32)
        with torch.no_grad():
            expected[name] = pipeline.unet(**call, return_dict=False)[0]
        torch.save(call, tmp_path / f"{name}.inputs.pt")
        torch.save([PROBE.sample_seed(index) for index in range(2)], tmp_path / f"{name}.seeds.pt")
    modules = tmp_path / "modules"
    result = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *(str(tmp_path / name) for name in pipelines)],
        env={**os.environ, "HF_MODULES_CACHE": str(modules)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for name in pipelines:
        output = torch.load(tmp_path / f"{name}.outputs.pt", weights_only=True)
        assert torch.equal(output, expected[name]), name
    for name in ("plain", "text"):
        assert torch.equal(torch.load(tmp_path / f"{name}.latents.pt", weights_only=True), latents(pipelines[name]))
    assert list(modules.rglob("pruned*.py"))  # the folder's own code ran


@pytest.mark.parametrize("fixture", ["tiny", "tiny_text", "tiny_transformer"])
def test_loaded_latents_are_bit_identical(fixture: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pipeline = request.getfixturevalue(fixture)
    pruned = pruned_copy(pipeline)
    ldpruner.save(pruned, tmp_path / "pruned")
    reloaded = ldpruner.load(tmp_path / "pruned")
    component = find_denoiser(pruned).component
    modifications = {removal["modification"] for removal in reloaded.components[component].config["removals"]}
    assert modifications >= {"identity"}
    assert count_parameters(reloaded.components[component]) < count_parameters(pipeline.components[component])
    assert not reloaded.components[component].training
    assert torch.equal(latents(reloaded), latents(pruned))


def test_load_runs_no_code_of_the_folder(broken: Path, pruned: DiffusionPipeline) -> None:
    (code,) = (broken / "unet").glob("*.py")
    code.write_text("raise SystemExit('ran')\n")
    assert torch.equal(latents(ldpruner.load(broken)), latents(pruned))


def test_an_unpruned_pipeline_is_saved_as_plain_diffusers(tiny: DiffusionPipeline, tmp_path: Path) -> None:
    ldpruner.save(tiny, tmp_path / "plain")
    for opened in (ldpruner.load(tmp_path / "plain"), DiffusionPipeline.from_pretrained(tmp_path / "plain")):
        assert torch.equal(latents(opened), latents(tiny))


def test_a_folder_shrinks_by_the_removed_weights(folder: Path, saved: Path, tiny: DiffusionPipeline) -> None:
    before = (folder / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    after = sum(path.stat().st_size for path in (saved / "unet").glob("*.safetensors"))
    removed = count_parameters(tiny.unet) - count_parameters(ldpruner.load(saved).unet)
    assert removed > 10_000
    assert before - after == pytest.approx(4 * removed, rel=0.1)


def test_half_precision_survives(tiny: DiffusionPipeline, tmp_path: Path) -> None:
    pruned = half(copy.deepcopy(pruned_copy(tiny)))  # the decoder is shared with the original
    ldpruner.save(pruned, tmp_path / "half")
    reloaded = ldpruner.load(tmp_path / "half", torch_dtype=torch.float16)
    assert reloaded.unet.dtype == torch.float16
    call = recorded_call(pruned, torch.float16)
    with torch.no_grad():
        assert torch.equal(reloaded.unet(**call).sample, pruned.unet(**call).sample)
    size = sum(path.stat().st_size for path in (tmp_path / "half" / "unet").glob("*.safetensors"))
    assert size < 2.3 * count_parameters(pruned.unet)


def test_a_pruned_pipeline_is_pruned_further_and_saved_again(saved: Path, tmp_path: Path) -> None:
    pruned_once = ldpruner.load(saved)
    twice = pruned_copy(pruned_once)
    assert count_parameters(twice.unet) < count_parameters(pruned_once.unet)
    ldpruner.save(twice, tmp_path / "twice")
    again = ldpruner.load(tmp_path / "twice")
    assert torch.equal(latents(again), latents(twice))
    assert len(again.unet.config["removals"]) > len(pruned_once.unet.config["removals"])


def test_operators_of_a_pruned_folder_are_found_without_its_weights(saved: Path, pruned: DiffusionPipeline) -> None:
    meta = load_meta(saved)
    assert count_parameters(meta.unet) == count_parameters(pruned.unet)
    assert ldpruner.find_operators(meta) == ldpruner.find_operators(pruned)


# Options


@pytest.mark.case(number=46)
@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"dtype": torch.bfloat16}, torch.bfloat16),
        ({"torch_dtype": {"unet": torch.float16, "default": torch.float32}}, torch.float16),
        ({"device_map": "cpu"}, torch.float32),
        ({"device_map": "balanced"}, torch.float32),
        ({"low_cpu_mem_usage": False}, torch.float32),
    ],
)
def test_options_do_what_they_do_in_diffusers(saved: Path, options: dict[str, Any], dtype: torch.dtype) -> None:
    pipeline = ldpruner.load(saved, **options)
    assert pipeline.unet.dtype == dtype
    assert pipeline.config["_name_or_path"] == str(saved)


@pytest.mark.case(number=45)
def test_variants_and_shards_are_opened(pruned: DiffusionPipeline, tmp_path: Path) -> None:
    pruned.save_pretrained(tmp_path / "parts", variant="fp16", max_shard_size="20KB")
    assert torch.equal(latents(ldpruner.load(tmp_path / "parts", variant="fp16")), latents(pruned))


@pytest.mark.case(number=46)
@pytest.mark.parametrize(
    ("options", "error", "parts"),
    [
        ({"device_map": "toaster"}, PipelineNotFound, ("toaster", "balanced")),
        ({"variant": "fp16"}, PipelineNotFound, ("fp16",)),
        ({"torch_dtpye": torch.float16}, TypeError, ("torch_dtpye", "torch_dtype")),
        ({"trust_remote_code": True}, TypeError, ("trust_remote_code",)),
        ({"tokenizer": None}, TypeError, ("tokenizer",)),
    ],
)
def test_an_option_that_cannot_be_followed_is_one_line(
    saved: Path, options: dict[str, Any], error: type[Exception], parts: tuple[str, ...]
) -> None:
    with pytest.raises(error) as caught:
        ldpruner.load(saved, **options)
    assert_one_line(caught.value, *parts)


@pytest.mark.case(number=46)
def test_a_component_is_replaced_when_a_folder_is_opened(
    broken: Path, tiny: DiffusionPipeline, pruned: DiffusionPipeline
) -> None:
    shutil.rmtree(broken / "unet")
    assert torch.equal(latents(ldpruner.load(broken, unet=pruned.unet)), latents(pruned))
    assert torch.equal(latents(ldpruner.load(broken, unet=tiny.unet)), latents(tiny))


def test_a_revision_of_the_hub_is_asked_for(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(_: str, **options: Any) -> str:
        asked.update(options)
        return str(saved)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    ldpruner.load("owner/name", revision="v1", cache_dir="here")
    assert (asked["revision"], asked["cache_dir"]) == ("v1", "here")


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "20KB"}])
def test_diffusers_downloads_the_weights_of_a_pushed_pipeline(
    pruned: DiffusionPipeline, tmp_path: Path, shards: dict[str, str]
) -> None:
    """Of a repository on the Hub it takes only files whose names it knows."""
    pruned.save_pretrained(tmp_path, **shards)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    weights = {name for name in names if ".safetensors" in name}
    assert is_safetensors_compatible(names)
    assert set(variant_compatible_siblings(names)[0]) == weights


PICKLED = """
import pickle, sys, torch
network, call, expected = pickle.load(open(sys.argv[1], "rb"))
with torch.no_grad():
    assert torch.equal(network(**call).sample, expected)
"""


@pytest.mark.extensive
@pytest.mark.case(number=46)
def test_a_pruned_network_is_pickled_for_another_process(pruned: DiffusionPipeline, tmp_path: Path) -> None:
    call = recorded_call(pruned, torch.float32)
    with torch.no_grad():
        content = (pruned.unet, call, pruned.unet(**call).sample)
    (tmp_path / "network.pkl").write_bytes(pickle.dumps(content))
    subprocess.run([sys.executable, "-c", PICKLED, str(tmp_path / "network.pkl")], check=True)


# A pruned folder cannot be mistaken for the unpruned one


def test_plain_diffusers_refuses_without_remote_code(saved: Path) -> None:
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(saved)


@pytest.mark.parametrize("network", [UNet2DModel, UNet2DConditionModel])
def test_the_unpruned_class_refuses(saved: Path, network: Any) -> None:
    with pytest.raises(OSError, match="diffusion_pytorch_model"):
        network.from_pretrained(saved / "unet")


def rewrite(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    """Changes the weights of a pruned folder."""

    def apply(folder: Path) -> None:
        path = folder / "unet" / "model.safetensors"
        state = load_file(path)
        change(state)
        save_file(state, path)

    return apply


def without_removals(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    config = json.loads(path.read_text())
    del config["removals"]
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    "breaking",
    [
        rewrite(lambda state: state.pop("conv_in.weight")),
        rewrite(lambda state: state.update(extra=torch.zeros(1))),
        rewrite(lambda state: state.update({"conv_in.bias": torch.zeros(3)})),
        without_removals,
        lambda folder: (folder / "unet" / "model.safetensors").unlink(),
        lambda folder: (folder / "unet" / "config.json").unlink(),
    ],
    ids=["missing weight", "extra weight", "other shape", "no removals", "no weights", "no configuration"],
)
def test_a_damaged_pruned_folder_is_refused(broken: Path, breaking: Callable[[Path], object]) -> None:
    breaking(broken)
    assert_refused(broken, PipelineNotFound)


# What is no pipeline, and what would have to be unpickled


def assert_refused(folder: Path | str, error: type[LdPrunerError], *parts: str) -> None:
    with pytest.raises(error) as caught:
        ldpruner.load(folder)
    assert_one_line(caught.value, str(folder), *parts)


@pytest.mark.parametrize(
    "name",
    ["no-such-model", "./no/such/folder", "/no/such/folder", "zoo:no-such-model", "no-such-owner/no-such-model"],
)
@pytest.mark.parametrize("opening", [ldpruner.load, load_meta])
def test_a_model_that_does_not_exist_is_refused(name: str, opening: Callable[[str], DiffusionPipeline]) -> None:
    with pytest.raises(PipelineNotFound) as caught:
        opening(name)
    assert_one_line(caught.value, name)


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path, PipelineNotFound, "model_index.json")


def test_a_file_is_no_pipeline(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert_refused(tmp_path / "model.safetensors", PipelineNotFound)


@pytest.mark.parametrize("content", ["{ not json", "", "[1, 2]", '{"unet": ["diffusers", "UNet2DModel"]}', "\xff"])
@pytest.mark.parametrize("opening", [ldpruner.load, load_meta])
def test_a_damaged_index_is_refused(
    broken_plain: Path, content: str, opening: Callable[[Path], DiffusionPipeline]
) -> None:
    (broken_plain / "model_index.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(PipelineNotFound) as caught:
        opening(broken_plain)
    assert_one_line(caught.value, str(broken_plain))


def test_an_unknown_pipeline_class_is_refused(broken_plain: Path) -> None:
    path = broken_plain / "model_index.json"
    path.write_text(path.read_text().replace("LDMPipeline", "TeaPotPipeline"))
    assert_refused(broken_plain, PipelineNotFound, "TeaPotPipeline")


NESTED = "[" * 100_000 + "]" * 100_000


@pytest.mark.case(name="corrupt-configuration")
@pytest.mark.parametrize("opening", [ldpruner.load, load_meta])
@pytest.mark.parametrize("component", ["unet/config.json", "vqvae/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("content", ["{", '"removals"', "[]", NESTED, '{"removals":' + NESTED, "\xff", "", "NaN"])
def test_a_corrupt_configuration_is_one_line(
    broken: Path, component: str, content: str, opening: Callable[[Path], DiffusionPipeline]
) -> None:
    (broken / component).write_bytes(content.encode("latin-1"))
    with pytest.raises(PipelineNotFound) as caught:
        opening(broken)
    assert_one_line(caught.value, str(broken / component))


def rewrite_removals(folder: Path, change: Callable[[list[Any]], Any]) -> None:
    path = folder / "unet" / "config.json"
    configuration = json.loads(path.read_text())
    path.write_text(json.dumps({**configuration, "removals": change(configuration["removals"])}))


@pytest.mark.case(name="wrong-removals")
@pytest.mark.parametrize("opening", [ldpruner.load, load_meta])
@pytest.mark.parametrize(
    "change",
    [
        lambda removals: 3,
        lambda removals: "all",
        lambda removals: {"operator": "conv_in"},
        lambda removals: ["conv_in"],
        lambda removals: [{}],
        lambda removals: [{**removals[0], "operator": 3}],
        lambda removals: [{**removals[0], "operator": "no.such.module"}],
        lambda removals: [{**removals[0], "modification": "halve"}],
        lambda removals: [{**removals[0], "source": {"a": 1}}],
        lambda removals: [{**removals[0], "source": 77}],
        lambda removals: [{**removals[0], "source": "no_such_input"}],
        lambda removals: [{**removals[0], "cascaded": ["no.such.module"]}],
        lambda removals: [{**removals[0], "more": 1}],
        lambda removals: removals * 2,
        lambda removals: removals * 5000,
    ],
)
def test_removals_that_mean_nothing_are_one_line(
    broken: Path, change: Callable[[list[Any]], Any], opening: Callable[[Path], DiffusionPipeline]
) -> None:
    rewrite_removals(broken, change)
    with pytest.raises(LdPrunerError) as caught:
        opening(broken)
    assert_one_line(caught.value)


@pytest.mark.case(name="long-model-name")
@pytest.mark.parametrize("name", ["x" * 5000, "owner/" + "x" * 5000, "/x" * 2500, "zoo:" + "x" * 5000, "a\0/b", ""])
@pytest.mark.parametrize("opening", [ldpruner.load, load_meta])
def test_a_name_that_can_be_no_model_is_one_short_line(name: str, opening: Callable[[str], DiffusionPipeline]) -> None:
    with pytest.raises(PipelineNotFound) as caught:
        opening(name)
    assert_one_line(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.case(name="out-of-memory-at-start")
@pytest.mark.parametrize("message", ["could not create a primitive", "DefaultCPUAllocator: can't allocate memory"])
def test_running_out_of_memory_is_no_fault_of_the_model(
    saved: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    def from_pretrained(*_: Any, **__: Any) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", from_pretrained)
    with pytest.raises(MemoryError, match=message):
        ldpruner.load(saved)


WEIGHTS = ("unet", "diffusion_pytorch_model.safetensors")


class Bomb:
    """A hostile pickle runs code when it is opened."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return exec, ("raise SystemExit('unpickled')",)


def test_a_zip_named_safetensors_is_refused(broken_plain: Path) -> None:
    path = broken_plain.joinpath(*WEIGHTS)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    assert_refused(broken_plain, UnsafeFile, path.name, "zip")


def test_a_pickle_named_safetensors_is_refused(broken_plain: Path) -> None:
    path = broken_plain.joinpath(*WEIGHTS)
    path.write_bytes(pickle.dumps(Bomb()))
    assert_refused(broken_plain, UnsafeFile, path.name, "pickle")


@pytest.mark.parametrize("content", [b"", b"\x08", b"nothing at all"])
def test_garbage_named_safetensors_is_refused(broken_plain: Path, content: bytes) -> None:
    path = broken_plain.joinpath(*WEIGHTS)
    path.write_bytes(content)
    assert_refused(broken_plain, UnsafeFile, path.name)


@pytest.mark.case(name="weights-are-no-file")
@pytest.mark.parametrize("kind", ["folder", "dangling link"])
def test_weights_that_are_no_file_are_refused(broken_plain: Path, kind: str) -> None:
    path = broken_plain.joinpath(*WEIGHTS)
    path.unlink()
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(broken_plain / "nowhere")
    assert_refused(broken_plain, UnsafeFile, path.name)


def test_a_file_cut_short_is_refused(broken_plain: Path) -> None:
    path = broken_plain.joinpath(*WEIGHTS)
    path.write_bytes(path.read_bytes()[:-1000])
    assert_refused(broken_plain, LdPrunerError)


@pytest.mark.parametrize("component", ["unet", "vqvae"])
def test_weights_that_come_as_a_pickle_alone_are_refused(broken_plain: Path, component: str) -> None:
    path = broken_plain / component / "diffusion_pytorch_model.safetensors"
    path.unlink()
    path.with_suffix(".bin").write_bytes(pickle.dumps(Bomb()))
    assert_refused(broken_plain, UnsafeFile, "diffusion_pytorch_model.bin")


def test_a_pickle_beside_safetensors_is_not_opened(broken_plain: Path, tiny: DiffusionPipeline) -> None:
    (broken_plain / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    assert torch.equal(latents(ldpruner.load(broken_plain)), latents(tiny))


@pytest.mark.filterwarnings("ignore")
def test_a_component_that_diffusers_has_moved_is_found(tmp_path: Path) -> None:
    """Audio pipelines of before 2023 name a module of `Mel` that is now among the deprecated ones."""
    FAMILIES["audio-diffusion"].pipeline().save_pretrained(tmp_path)
    path = tmp_path / "model_index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "mel": ["audio_diffusion", "Mel"]}))
    assert type(ldpruner.load(tmp_path).components["mel"]).__name__ == "Mel"
    assert type(load_meta(tmp_path).components["mel"]).__name__ == "Mel"
