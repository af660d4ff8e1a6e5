"""Operators are found, and what their removal saves is counted independently."""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ldpruner.errors import DenoiserNotFound
from ldpruner.operators.choosing import find_operators
from ldpruner.operators.discovery import Candidate, Operator, denoiser_macs, operators_of
from ldpruner.operators.patching import modified
from ldpruner.operators.tracing import trace
from ldpruner.pipelines.denoiser import Denoiser, find_denoiser
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pruning.serialization import load_meta

ARCHITECTURES = Path(__file__).parents[1] / "architectures"
PIPELINES = ("tiny", "tiny_text", "tiny_transformer")
CHECKED = 20  # operators of each pipeline; torch's counter is slow
MAX_SECONDS = 15.0  # of this process; about 3 on an idle machine


def counted_macs(denoiser: Denoiser) -> int:
    """Multiply-accumulates of one row by torch's own counter; the fused attention kernels are not counted by it."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        denoiser()
    return int(counter.get_total_flops()) // 2 // denoiser.rows


@dataclass(frozen=True)
class Expected:
    """The published numbers of a checkpoint.

    Attributes:
        parameters: of the denoiser.
        gmacs: of one row at the default size.
        operators: how many there are of a module type and a modification.
    """

    parameters: int
    gmacs: float | None
    operators: dict[tuple[str, str], int]


PUBLISHED = {
    "stable-diffusion-v1-4": Expected(
        859_520_964,
        401.6,
        {
            ("transformer_block", "identity"): 16,
            ("attention", "zero"): 32,
            ("feed_forward", "zero"): 16,
            ("resnet", "identity"): 8,
            ("resnet", "shortcut"): 14,
        },
    ),
    "stable-diffusion-xl-base-1.0": Expected(
        2_567_463_684, None, {("transformer_block", "identity"): 70, ("attention", "zero"): 140}
    ),
    "ldm-celebahq-256": Expected(274_056_163, None, {}),
}


IN_DEFAULT_RUN = {"stable-diffusion-v1-4"}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' Euler scheduler
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in IN_DEFAULT_RUN else pytest.mark.extensive) for name in PUBLISHED],
)
def test_operators_of_a_published_pipeline_are_found_from_its_configuration(name: str) -> None:
    expected = PUBLISHED[name]
    start = time.process_time()
    denoiser = find_denoiser(load_meta(ARCHITECTURES / name))
    flow = trace(denoiser)
    operators = operators_of(denoiser, flow)
    assert time.process_time() - start < MAX_SECONDS
    assert count_parameters(denoiser.module) == expected.parameters
    if expected.gmacs:
        assert denoiser_macs(denoiser, flow) / 1e9 == pytest.approx(expected.gmacs, rel=1e-3)
    counts = count_modifications(operators)
    assert {key: counts[key] for key in expected.operators} == expected.operators
    assert all(weight.is_meta for weight in denoiser.module.parameters())


def count_modifications(operators: Iterable[Operator]) -> Counter[tuple[str, str]]:
    return Counter(
        (operator.module_type, modification) for operator in operators for modification in operator.modifications
    )


@pytest.mark.parametrize("fixture", PIPELINES)
def test_macs_of_a_denoiser_are_those_that_torch_counts(fixture: str, request: pytest.FixtureRequest) -> None:
    denoiser = find_denoiser(request.getfixturevalue(fixture))
    assert denoiser_macs(denoiser) == counted_macs(denoiser) > 0


@pytest.mark.parametrize("fixture", PIPELINES)
def test_a_removal_saves_what_torch_no_longer_counts(fixture: str, request: pytest.FixtureRequest) -> None:
    denoiser = find_denoiser(request.getfixturevalue(fixture))
    parameters, macs = count_parameters(denoiser.module), counted_macs(denoiser)
    operators = operators_of(denoiser)
    runnable = 0
    for operator in operators[:: 1 + len(operators) // CHECKED]:
        for candidate in operator.candidates:
            with modified(denoiser.module, [candidate.removal]):
                assert parameters - count_parameters(denoiser.module) == candidate.parameters, candidate
                try:
                    left = counted_macs(denoiser)
                except AttributeError:  # DiT reads its first block's normalisation from outside
                    assert operator.name == "transformer_blocks.0"
                    continue
                assert macs - left == candidate.macs, candidate
                runnable += 1
    assert runnable > CHECKED / 2


@pytest.mark.parametrize("fixture", PIPELINES)
def test_an_operator_has_the_shapes_and_calls_of_its_module(fixture: str, request: pytest.FixtureRequest) -> None:
    denoiser = find_denoiser(request.getfixturevalue(fixture))
    modules = dict(denoiser.module.named_modules())
    shapes: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {name: [] for name in modules}
    for name, module in modules.items():

        def record(_: nn.Module, inputs: Any, outputs: Any, name: str = name) -> None:
            first = inputs[0] if inputs else None
            output = outputs[0] if isinstance(outputs, tuple) else outputs
            if isinstance(first, torch.Tensor) and isinstance(output, torch.Tensor):
                shapes[name].append((tuple(first.shape), tuple(output.shape)))

        module.register_forward_hook(record)
    try:
        denoiser()
    finally:
        for module in modules.values():
            module._forward_hooks.clear()
    operators = operators_of(denoiser)
    assert len({operator.name for operator in operators}) == len(operators)
    for operator in operators:
        assert operator.component == denoiser.component
        assert operator.parameters == count_parameters(modules[operator.name])
        if calls := shapes[operator.name]:  # with positional arguments
            assert operator.calls == len(calls)
            assert (operator.input_shape, operator.output_shape) == calls[0]


def candidate_of(operators: tuple[Operator, ...], name: str) -> Candidate:
    (candidate,) = next(operator.candidates for operator in operators if operator.name == name)
    return candidate


@pytest.fixture(scope="module")
def text_operators(tiny_text: DiffusionPipeline) -> tuple[Operator, ...]:
    return find_operators(tiny_text)


BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"


@pytest.mark.parametrize(("branch", "norm"), [("attn1", "norm1"), ("attn2", "norm2"), ("ff", "norm3")])
def test_a_residual_branch_takes_the_norm_in_front_of_it_along(
    tiny_text: DiffusionPipeline, text_operators: tuple[Operator, ...], branch: str, norm: str
) -> None:
    candidate = candidate_of(text_operators, f"{BLOCK}.{branch}")
    block = tiny_text.unet.get_submodule(BLOCK)
    assert candidate.modification == "zero"
    assert candidate.cascaded == (f"{BLOCK}.{norm}",)
    assert candidate.parameters == count_parameters(block.get_submodule(branch), block.get_submodule(norm))
    assert f"{BLOCK}.{norm}" in candidate.leaves


def test_each_module_of_a_text_pipeline_allows_the_modification_of_its_type(
    tiny_text: DiffusionPipeline, text_operators: tuple[Operator, ...]
) -> None:
    classes = Counter(type(module).__name__ for module in tiny_text.unet.modules())
    resnets = [module for module in tiny_text.unet.modules() if type(module).__name__ == "ResnetBlock2D"]
    counts = count_modifications(text_operators)
    assert counts["transformer_block", "identity"] == classes["BasicTransformerBlock"]
    assert counts["attention", "zero"] == 2 * classes["BasicTransformerBlock"]
    assert counts["feed_forward", "zero"] == classes["FeedForward"]
    assert counts["resnet", "identity"] == sum(module.conv_shortcut is None for module in resnets)
    assert counts["resnet", "shortcut"] == sum(module.conv_shortcut is not None for module in resnets)


def test_an_attention_that_adds_its_own_input_becomes_the_identity(operators: tuple[Operator, ...]) -> None:
    assert candidate_of(operators, "mid_block.attentions.0").modification == "identity"


def test_a_block_that_changes_its_width_keeps_its_shortcut(operators: tuple[Operator, ...]) -> None:
    candidate = candidate_of(operators, "down_blocks.1.resnets.0")
    assert (candidate.modification, candidate.source) == ("shortcut", "conv_shortcut")
    assert not any("conv_shortcut" in leaf for leaf in candidate.leaves)


def test_an_operator_that_changes_the_shape_is_not_offered(operators: tuple[Operator, ...]) -> None:
    names = {operator.name for operator in operators}
    assert names.isdisjoint({"conv_in", "conv_out", "down_blocks.0.downsamplers.0", "up_blocks.0.upsamplers.0"})


def test_a_block_comes_before_what_is_in_it(operators: tuple[Operator, ...]) -> None:
    names = [operator.name for operator in operators]
    assert names.index("mid_block") < names.index("mid_block.resnets.0") < names.index("mid_block.resnets.0.norm1")
    assert names.index("mid_block.resnets.0") < names.index("mid_block.resnets.1")


def test_operators_are_the_same_with_and_without_weights(tiny: DiffusionPipeline, folder: Path) -> None:
    assert find_operators(load_meta(folder)) == find_operators(tiny)


def test_finding_operators_changes_nothing(tiny: DiffusionPipeline) -> None:
    before = {name: weight.clone() for name, weight in tiny.unet.state_dict().items()}
    modules = list(tiny.unet.modules())
    find_operators(tiny)
    assert all(before is after for before, after in zip(modules, tiny.unet.modules(), strict=True))
    assert all(torch.equal(before[name], weight) for name, weight in tiny.unet.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def test_an_unknown_component_is_refused(tiny: DiffusionPipeline) -> None:
    with pytest.raises(DenoiserNotFound, match="'unet2'"):
        find_operators(tiny, "unet2")
