"""Exported denoisers give the latents of the torch ones over whole runs, and what cannot be exported is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.errors import ExportError, StorageError
from ldpruner.exporting import export as exporting
from ldpruner.pipelines.exported import ExportedNetwork
from ldpruner.pipelines.sampling import sample_latents
from ldpruner.pipelines.sessions import FILES
from ldpruner.profiling.benchmark import compare
from tests.conftest import planned
from tests.exporting.conftest import PROBE
from tests.families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporters and runtimes

NAMES = (
    "stable-diffusion",
    "dit",
    "stable-diffusion-xl",
    "stable-diffusion-3",
    "flux",
    "wan",
    "pixart-alpha",
)

# A transformer in every format, each other family in one of them.
PAIRS = [
    (name, file_format)
    for place, name in enumerate(NAMES)
    for turn, file_format in enumerate(FILES)
    if name == "flux" or turn == place % len(FILES)
]


def relative(expected: torch.Tensor, actual: torch.Tensor) -> float:
    return float((expected - actual).norm() / expected.norm())


def test_a_pruned_pipeline_gives_the_same_latents_exported(exported: Path, pruned: DiffusionPipeline) -> None:
    pipeline = ldpruner.load(exported, trust_programs=True)
    assert isinstance(pipeline.unet, ExportedNetwork)
    for samples in ([0], [1], [0, 1], [0, 1, 2]):  # a batch of one, and one that was not recorded
        probe = PROBE.replace(samples=3)
        assert relative(sample_latents(pruned, probe, samples), sample_latents(pipeline, probe, samples)) < 1e-4


def test_an_exported_pipeline_is_timed_beside_the_original(
    exported: Path, pruned: DiffusionPipeline, tiny: DiffusionPipeline
) -> None:
    pipeline = ldpruner.load(exported, trust_programs=True)
    _, cost = compare({"original": tiny, "exported": pipeline}, PROBE, rounds=1).pipelines
    (expected,) = compare({"pruned": pruned}, PROBE, rounds=1).pipelines
    assert (cost.parameters, cost.macs) == (expected.parameters, expected.macs)


def test_an_exported_pipeline_is_saved_again(exported: Path, pruned: DiffusionPipeline, tmp_path: Path) -> None:
    ldpruner.save(ldpruner.load(exported, trust_programs=True), tmp_path / "copy")
    pipeline = ldpruner.load(tmp_path / "copy", trust_programs=True)
    assert relative(sample_latents(pruned, PROBE, [0]), sample_latents(pipeline, PROBE, [0])) < 1e-4


def test_the_folder_says_what_was_compared(exported: Path) -> None:
    description = json.loads((exported / "unet" / "exported.json").read_text(encoding="utf-8"))
    parity = description["parity"]
    assert parity["difference"] <= parity["tolerance"]
    assert (parity["samples"], parity["steps"]) == (2, 3)
    assert [value["name"] for value in description["layout"]["inputs"]] == ["sample", "timestep"]
    assert not list(exported.glob("unet/*.safetensors"))


def test_the_pipeline_is_as_before(smallest: DiffusionPipeline, tmp_path: Path) -> None:
    before, network = smallest.config["unet"], smallest.unet
    ldpruner.export(smallest, tmp_path / "out", "torch-export", probe=PROBE)
    assert smallest.unet is network
    assert smallest.config["unet"] == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_other_latents_are_an_error_and_nothing_is_left(
    smallest: DiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime computes rightly for recorded calls, and wrongly in the run."""
    opened = exporting._Exporter._opened

    def wrong(self: Any) -> Any:
        network = opened(self)
        forward = type(network).forward
        calls = iter(range(100))

        def changed(*args: Any, **kwargs: Any) -> Any:
            output = forward(network, *args, **kwargs)
            if next(calls) >= 3:
                output.sample.mul_(1.1)
            return output

        monkeypatch.setattr(network, "forward", changed)
        return network

    monkeypatch.setattr(exporting._Exporter, "_opened", wrong)
    with pytest.raises(ExportError, match=r"the latents of UNet2DModel differ by .*; nothing was saved"):
        ldpruner.export(smallest, tmp_path / "out", "torch-export", probe=PROBE)
    assert not list(tmp_path.iterdir())


@pytest.mark.extensive
def test_what_a_format_cannot_express_is_one_line(smallest: DiffusionPipeline, tmp_path: Path) -> None:
    class Unknown(torch.nn.Module):
        def forward(self, tensor: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = torch.special.airy_ai(tensor)
            return result

    smallest.unet.conv_act = Unknown()
    with pytest.raises(ExportError, match=r"UNet2DModel cannot be exported to onnx \(it has no .*airy_ai") as caught:
        ldpruner.export(smallest, tmp_path / "out", "onnx", probe=PROBE)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_else_is_refused_first(smallest: DiffusionPipeline, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match="was not saved by ld-pruner"):
        ldpruner.export(smallest, tmp_path, "onnx", probe=PROBE)


def test_another_format_is_refused(smallest: DiffusionPipeline, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="format 'tflite' does not exist; accepted: onnx, openvino, torch-export"):
        ldpruner.export(smallest, tmp_path / "out", "tflite")


def test_onnx_and_openvino_refuse_bfloat16(tiny_transformer: DiffusionPipeline, tmp_path: Path) -> None:
    pipeline = copy.deepcopy(tiny_transformer).to(torch.bfloat16)
    with pytest.raises(ExportError, match="openvino does not compute in bfloat16; export the pipeline in float32"):
        ldpruner.export(pipeline, tmp_path / "out", "openvino", probe=PROBE)


@pytest.mark.extensive
@pytest.mark.parametrize(("name", "file_format"), PAIRS)
def test_a_pruned_family_is_exported_and_opens(name: str, file_format: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    pipeline = family.pipeline()
    probe = ldpruner.Probe(samples=2, steps=2, prompts=family.prompts, call=dict(family.call))
    operators = ldpruner.find_operators(pipeline, family.component, probe.arguments(pipeline, [0]))
    removals = {candidate.modification: candidate for operator in operators for candidate in operator.candidates}
    plan = ldpruner.Plan(component=family.component, removed=tuple(map(planned, removals.values())))
    pruned = ldpruner.prune(pipeline, plan)
    description = ldpruner.export(pruned, tmp_path / "out", file_format, probe=probe, component=family.component)
    assert description.free == ("batch" if name == "dit" else "batch and size")  # DiT's call takes no size
    opened = ldpruner.load(tmp_path / "out", trust_programs=True)
    assert relative(sample_latents(pruned, probe, [0]), sample_latents(opened, probe, [0])) < 1e-3
