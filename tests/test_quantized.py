"""Pruned pipelines quantised, cast and offloaded give what the pruned pipeline gives; the original is a control."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FluxTransformer2DModel,
    GGUFQuantizationConfig,
    PipelineQuantizationConfig,
    TorchAoConfig,
)
from torch import nn
from torch.utils._pytree import tree_leaves
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

import ldpruner
from ldpruner.errors import PlanMismatch
from ldpruner.pipelines.denoiser import copied, find_denoiser
from ldpruner.pipelines.sampling import sample_latents
from tests.conftest import planned
from tests.families import FAMILIES, Family

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries

CPU = torch.device("cpu")
NAME = "flux"
NAMES = ("stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3", "wan", "pixart-alpha", "audioldm2")
CONFIGURATIONS = {"int8": Int8WeightOnlyConfig, "float8": Float8WeightOnlyConfig}


class Pair:
    """A small pipeline and its pruned copy, in memory and on disk."""

    def __init__(self, family: Family, folder: Path) -> None:
        self.family = family
        self.original = family.pipeline()
        self.probe = ldpruner.Probe(samples=2, steps=2, prompts=family.prompts, call=dict(family.call))
        call = self.probe.arguments(self.original, [0])
        operators = ldpruner.find_operators(self.original, family.component, call)
        self.component = operators[0].component
        removals = {candidate.modification: candidate for part in operators for candidate in part.candidates}
        self.plan = ldpruner.Plan(component=self.component, removed=tuple(map(planned, removals.values())))
        self.pruned = ldpruner.prune(self.original, self.plan)
        self.folders = {"original": folder / "original", "pruned": folder / "pruned"}
        ldpruner.save(self.original, self.folders["original"])
        ldpruner.save(self.pruned, self.folders["pruned"])

    def network(self, pipeline: DiffusionPipeline) -> Any:
        return pipeline.components[self.component]

    def latents(self, pipeline: DiffusionPipeline) -> torch.Tensor:
        return sample_latents(pipeline, self.probe, [0])

    def loaded(self, which: str, **options: Any) -> DiffusionPipeline:
        return ldpruner.load(self.folders[which], **options)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(FAMILIES[NAME], tmp_path_factory.mktemp("pair"))


def relative(expected: torch.Tensor, actual: torch.Tensor) -> float:
    return float((expected - actual).norm() / expected.norm())


def configuration(pair: Pair, name: str) -> Any:
    return PipelineQuantizationConfig(quant_mapping={pair.component: TorchAoConfig(CONFIGURATIONS[name]())})


@pytest.mark.case(number=45)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_pruned_folder_is_quantised_when_it_is_loaded(pair: Pair, name: str) -> None:
    options = {"quantization_config": configuration(pair, name), "dtype": torch.bfloat16}
    original, quantised = pair.loaded("original", **options), pair.loaded("pruned", **options)
    types = {type(weight).__name__ for weight in pair.network(quantised).parameters()}
    assert f"{name.capitalize()}Tensor" in types
    assert torch.equal(pair.latents(quantised), pair.latents(ldpruner.prune(original, pair.plan)))
    eager = pair.loaded("pruned", dtype=torch.bfloat16)
    assert 0 < relative(pair.latents(eager), pair.latents(quantised)) < 0.1
    folder = pair.folders["pruned"]
    elsewhere = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **options)
    assert torch.equal(pair.latents(elsewhere), pair.latents(quantised))


@pytest.mark.case(number=47)
def test_a_quantised_pipeline_is_scored_pruned_and_saved(pair: Pair, tmp_path: Path) -> None:
    pipeline = pair.loaded("original", quantization_config=configuration(pair, "int8"), dtype=torch.bfloat16)
    before = pair.latents(pipeline)
    operators = ldpruner.find_operators(pipeline, None, pair.probe.arguments(pipeline, [0]))[:2]
    first = ldpruner.score_operators(pipeline, operators, pair.probe, budgets=None).scores
    second = ldpruner.score_operators(pipeline, operators, pair.probe, budgets=None).scores
    assert [score.score for score in first] == [score.score for score in second]
    assert torch.equal(pair.latents(pipeline), before)
    pruned = ldpruner.prune(pipeline, pair.plan)
    ldpruner.save(pruned, tmp_path / "saved")
    assert torch.equal(pair.latents(ldpruner.load(tmp_path / "saved", dtype=torch.bfloat16)), pair.latents(pruned))


def eight_bits(layer: nn.Linear) -> Any:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    has_bias = layer.bias is not None
    return bitsandbytes.nn.Linear8bitLt(layer.in_features, layer.out_features, has_bias, has_fp16_weights=False)


def with_layers_(network: nn.Module, make: Callable[[nn.Linear], Any]) -> None:
    """Replaces the linear layers as diffusers does; diffusers itself asks for a GPU."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:
                replaced = make(layer)
                replaced.load_state_dict(layer.state_dict())
                setattr(parent, name, replaced.to(CPU))


@pytest.mark.gpu  # where diffusers uses bitsandbytes
def test_layers_of_bitsandbytes_are_pruned_as_others(pair: Pair) -> None:
    first, second = copy.deepcopy(pair.original), copy.deepcopy(pair.pruned)
    for pipeline in (first, second):
        with_layers_(pair.network(pipeline), eight_bits)
    quantised = pair.latents(second)
    assert torch.equal(pair.latents(ldpruner.prune(first, pair.plan)), quantised)
    assert 0 < relative(pair.latents(pair.pruned), quantised) < 0.1


def cast(network: Any) -> None:
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def test_layerwise_casting_of_a_pruned_network_is_that_of_the_original(pair: Pair) -> None:
    first, second = pair.loaded("original"), pair.loaded("pruned")
    for pipeline in (first, second):
        cast(pair.network(pipeline))
    expected = pair.latents(second)
    with pytest.raises(PlanMismatch, match=r"has hooks of diffusers \(layerwise_casting\)"):
        ldpruner.prune(first, pair.plan)  # a copy would run the modules of the original
    assert torch.equal(pair.latents(ldpruner.prune_(first, pair.plan)), expected)
    assert 0 < relative(pair.latents(pair.pruned), expected) < 0.2


def written_as_gguf(network: nn.Module, path: Path) -> Path:
    """Writes Q8_0 blocks where rows can be divided into them, as the ecosystem's converters do."""
    writer = gguf.GGUFWriter(path, "flux")
    for name, weight in network.state_dict().items():
        array, q8 = weight.numpy(), gguf.GGMLQuantizationType.Q8_0
        is_divisible = array.ndim == 2 and array.shape[1] % 32 == 0
        if is_divisible:
            writer.add_tensor(name, gguf.quants.quantize(array, q8), raw_dtype=q8)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_flux_of_fewer_blocks_opens_from_gguf(tmp_path: Path) -> None:
    widths = {"in_channels": 32, "joint_attention_dim": 32, "pooled_projection_dim": 32}
    heads = {"attention_head_dim": 16, "num_attention_heads": 2, "axes_dims_rope": (4, 4, 8)}
    torch.manual_seed(0)
    network = FluxTransformer2DModel(num_layers=1, num_single_layers=2, **widths, **heads).eval()
    network.save_pretrained(tmp_path)
    file = written_as_gguf(network, tmp_path / "model.gguf")
    options = {"quantization_config": GGUFQuantizationConfig(torch.float32), "torch_dtype": torch.float32}
    quantised = FluxTransformer2DModel.from_single_file(file, config=str(tmp_path), **options)
    tokens = {"hidden_states": torch.randn(1, 16, 32), "encoder_hidden_states": torch.randn(1, 8, 32)}
    places = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(8, 3)}
    call = {**tokens, **places, "pooled_projections": torch.randn(1, 32), "timestep": torch.ones(1)}
    with torch.no_grad():
        assert 0 < relative(network(**call).sample, quantised(**call).sample) < 0.05


def test_a_network_with_stand_ins_opens_from_gguf_by_its_own_class(pair: Pair, tmp_path: Path) -> None:
    network = pair.network(pair.pruned)
    file = written_as_gguf(network, tmp_path / "model.gguf")
    options = {"quantization_config": GGUFQuantizationConfig(torch.float32), "torch_dtype": torch.float32}
    configuration = str(pair.folders["pruned"] / pair.component)
    opened = copy.copy(pair.pruned)
    quantised = type(network).from_single_file(file, config=configuration, **options)
    opened.register_modules(**{pair.component: quantised})
    assert relative(pair.latents(pair.pruned), pair.latents(opened)) < 0.05


@pytest.mark.parametrize("how", ["block_level", "leaf_level"])
def test_a_pruned_network_is_offloaded_in_groups(pair: Pair, how: str) -> None:
    for which in ("original", "pruned"):
        pipeline = pair.loaded(which)
        blocks = {"num_blocks_per_group": 1} if how == "block_level" else {}
        places = {"onload_device": CPU, "offload_device": CPU}
        pair.network(pipeline).enable_group_offload(offload_type=how, **places, **blocks)
        assert torch.equal(pair.latents(pipeline), pair.latents(getattr(pair, which)))


@pytest.mark.extensive
@pytest.mark.parametrize("name", [NAME, *(pytest.param(name, marks=pytest.mark.extensive) for name in NAMES)])
def test_a_pruned_network_compiles_as_one_graph(name: str, tmp_path: Path) -> None:
    pair = Pair(FAMILIES[name], tmp_path)
    arguments = pair.probe.arguments(pair.pruned, [0])
    denoiser = find_denoiser(pair.pruned, pair.component, arguments)
    torch._dynamo.reset()
    compiled = torch.compile(denoiser.module, fullgraph=True, backend="aot_eager")
    args, kwargs = copied((denoiser.arguments, denoiser.options))
    with torch.no_grad():
        output = compiled(*args, **kwargs)
    for expected, actual in zip(tree_leaves(denoiser()), tree_leaves(output), strict=True):
        assert torch.allclose(expected, actual, rtol=1e-4, atol=1e-5)
