"""What can be removed, and what goes away with each: counted independently."""

import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ldpruner.errors import DenoiserNotFound, OperatorNotFound
from ldpruner.operators.discovery import Candidate, Operator, denoiser_macs, find_operators, operators_of
from ldpruner.operators.module_types import module_type
from ldpruner.operators.patching import modified
from ldpruner.pipelines.denoiser import Denoiser, find_denoiser
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pruning.serialization import load_meta

ARCHITECTURES = Path(__file__).parents[1] / "architectures"
PIPELINES = ("tiny", "tiny_text", "tiny_transformer")
GENEROUS = 15.0  # seconds of this process; 5 on an idle machine, but other work may hold its caches and its clock


def counted_macs(denoiser: Denoiser) -> int:
    """Multiply-accumulates of one row by torch's own counter; the fused attention kernels are not counted by it."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        denoiser()
    return int(counter.get_total_flops()) // 2 // denoiser.rows


@dataclass(frozen=True)
class Expected:
    """What is known of a published checkpoint."""

    parameters: int
    macs: float | None  # G, of one row at the default size
    kinds: dict[tuple[str, str], int]


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


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' Euler scheduler
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_pipeline_is_understood_from_its_configuration(name: str) -> None:
    expected = PUBLISHED[name]
    pipeline = load_meta(ARCHITECTURES / name)
    start = time.process_time()
    found = find_operators(pipeline)
    assert time.process_time() - start < GENEROUS
    denoiser = find_denoiser(pipeline)
    assert count_parameters(denoiser.module) == expected.parameters
    if expected.macs:
        assert denoiser_macs(denoiser) / 1e9 == pytest.approx(expected.macs, rel=1e-3)
    kinds: Counter[tuple[str, str]] = Counter(
        (one.kind, modification) for one in found for modification in one.modifications
    )
    assert {key: kinds[key] for key in expected.kinds} == expected.kinds
    assert all(weight.is_meta for weight in denoiser.module.parameters())


@pytest.mark.parametrize("fixture", PIPELINES)
def test_macs_of_a_denoiser_are_those_that_torch_counts(fixture: str, request: pytest.FixtureRequest) -> None:
    denoiser = find_denoiser(request.getfixturevalue(fixture))
    assert denoiser_macs(denoiser) == counted_macs(denoiser) > 0


@pytest.mark.parametrize("fixture", PIPELINES)
def test_what_a_modification_saves_is_what_torch_no_longer_counts(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    pipeline = request.getfixturevalue(fixture)
    denoiser = find_denoiser(pipeline)
    weights, macs = count_parameters(denoiser.module), counted_macs(denoiser)
    runnable = 0
    found = operators_of(denoiser)
    for operator in found[:: 1 + len(found) // 60]:  # torch's counter is slow
        for candidate in operator.candidates:
            with modified(denoiser.module, [candidate.removal]):
                assert weights - count_parameters(denoiser.module) == candidate.parameters, candidate
                try:
                    left = counted_macs(denoiser)
                except AttributeError:  # DiT reads its first block's normalisation from outside
                    assert operator.name == "transformer_blocks.0"
                    continue
                assert macs - left == candidate.macs, candidate
                runnable += 1
    assert runnable > 15


@pytest.mark.parametrize("fixture", PIPELINES)
def test_an_operator_says_what_it_is(fixture: str, request: pytest.FixtureRequest) -> None:
    pipeline = request.getfixturevalue(fixture)
    denoiser = find_denoiser(pipeline)
    modules = dict(denoiser.module.named_modules())
    seen: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {name: [] for name in modules}
    for name, module in modules.items():

        def note(_: nn.Module, given: object, made: object, name: str = name) -> None:
            first = given[0] if isinstance(given, tuple) and given else None
            last = made[0] if isinstance(made, tuple) else made
            if isinstance(first, torch.Tensor) and isinstance(last, torch.Tensor):
                seen[name].append((tuple(first.shape), tuple(last.shape)))

        module.register_forward_hook(note)
    try:
        denoiser()
    finally:
        for module in modules.values():
            module._forward_hooks.clear()
    found = operators_of(denoiser)
    assert len({one.name for one in found}) == len(found)
    for one in found:
        assert one.component == denoiser.component
        assert one.parameters == count_parameters(modules[one.name])
        if seen[one.name]:  # of calls with positional arguments
            assert one.calls == len(seen[one.name])
            assert (one.input_shape, one.output_shape) == seen[one.name][0]


def the(operators: tuple[Operator, ...], name: str) -> Candidate:
    """The one candidate of a named operator."""
    (candidate,) = next(one.candidates for one in operators if one.name == name)
    return candidate


BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"


@pytest.mark.parametrize(("branch", "norm"), [("attn1", "norm1"), ("attn2", "norm2"), ("ff", "norm3")])
def test_a_residual_branch_takes_the_norm_in_front_of_it_along(
    tiny_text: DiffusionPipeline, branch: str, norm: str
) -> None:
    candidate = the(find_operators(tiny_text), f"{BLOCK}.{branch}")
    block = tiny_text.unet.get_submodule(BLOCK)
    assert candidate.modification == "zero"
    assert candidate.cascaded == (f"{BLOCK}.{norm}",)
    assert candidate.parameters == count_parameters(block.get_submodule(branch)) + count_parameters(
        block.get_submodule(norm)
    )
    assert f"{BLOCK}.{norm}" in candidate.leaves


def test_the_kinds_and_modifications_of_a_text_pipeline(tiny_text: DiffusionPipeline) -> None:
    unet = tiny_text.unet
    classes = Counter(type(module).__name__ for module in unet.modules())
    resnets = [module for module in unet.modules() if type(module).__name__ == "ResnetBlock2D"]
    found = Counter(
        (one.kind, modification) for one in find_operators(tiny_text) for modification in one.modifications
    )
    assert found["transformer_block", "identity"] == classes["BasicTransformerBlock"]
    assert found["attention", "zero"] == 2 * classes["BasicTransformerBlock"]
    assert found["feed_forward", "zero"] == classes["FeedForward"]
    assert found["resnet", "identity"] == sum(module.conv_shortcut is None for module in resnets)
    assert found["resnet", "shortcut"] == sum(module.conv_shortcut is not None for module in resnets)


def test_an_attention_that_adds_its_own_input_becomes_the_identity(operators: tuple[Operator, ...]) -> None:
    assert the(operators, "mid_block.attentions.0").modification == "identity"


def test_a_block_that_changes_its_width_keeps_its_shortcut(operators: tuple[Operator, ...]) -> None:
    candidate = the(operators, "down_blocks.1.resnets.0")
    assert (candidate.modification, candidate.source) == ("shortcut", "conv_shortcut")
    assert not any("conv_shortcut" in leaf for leaf in candidate.leaves)


def test_an_operator_that_changes_the_shape_is_not_offered(operators: tuple[Operator, ...]) -> None:
    names = {one.name for one in operators}
    assert names.isdisjoint({"conv_in", "conv_out", "down_blocks.0.downsamplers.0", "up_blocks.0.upsamplers.0"})


def test_a_block_comes_before_what_is_in_it(operators: tuple[Operator, ...]) -> None:
    names = [one.name for one in operators]
    assert names.index("mid_block") < names.index("mid_block.resnets.0") < names.index("mid_block.resnets.0.norm1")
    assert names.index("mid_block.resnets.0") < names.index("mid_block.resnets.1")


def test_operators_are_the_same_with_and_without_weights(tiny: DiffusionPipeline, folder: Path) -> None:
    assert find_operators(load_meta(folder)) == find_operators(tiny)


def test_finding_operators_changes_nothing(tiny: DiffusionPipeline) -> None:
    before = {name: weight.clone() for name, weight in tiny.unet.state_dict().items()}
    modules = list(tiny.unet.modules())
    find_operators(tiny)
    assert all(one is other for one, other in zip(modules, tiny.unet.modules(), strict=True))
    assert all(torch.equal(before[name], weight) for name, weight in tiny.unet.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def test_an_unknown_component_is_told(tiny: DiffusionPipeline) -> None:
    with pytest.raises(DenoiserNotFound, match="'unet2'"):
        find_operators(tiny, "unet2")


def test_patterns_choose_operators_by_their_dotted_names(tiny: DiffusionPipeline) -> None:
    every = find_operators(tiny)
    chosen = find_operators(tiny, ignore=["*.norm*", "mid_block"], targets=["mid_block*", "*attentions.?"])
    expected = [
        one
        for one in every
        if (one.name.startswith("mid_block") or one.name[:-1].endswith("attentions."))
        and ".norm" not in one.name
        and one.name != "mid_block"
    ]
    assert list(chosen) == expected != []


@pytest.mark.parametrize("patterns", [{"ignore": ["no_such*"]}, {"targets": ["MID_BLOCK"]}])
def test_a_pattern_that_matches_nothing_is_told(tiny: DiffusionPipeline, patterns: dict[str, list[str]]) -> None:
    (pattern,) = next(iter(patterns.values()))
    with pytest.raises(OperatorNotFound, match=re.escape(pattern)):
        find_operators(tiny, **patterns)  # type: ignore[arg-type]


def test_the_kind_of_a_class_that_nobody_knows_is_its_name() -> None:
    class Kaleidoscope(nn.Module):
        pass

    assert module_type(Kaleidoscope()) == "kaleidoscope"
    assert module_type(nn.Conv2d(1, 1, 1)) == "convolution"
    assert module_type(nn.GroupNorm(1, 1)) == "normalisation"
