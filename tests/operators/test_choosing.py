"""Operators are chosen by granularity and by patterns of their names."""

import re
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from ldpruner.errors import NothingToRemove, OperatorNotFound, ProbeError
from ldpruner.operators.choosing import (
    GRANULARITIES,
    at_granularity,
    choose_operators,
    default_granularity,
    find_operators,
)
from ldpruner.operators.discovery import Operator
from ldpruner.pipelines.denoiser import find_denoiser
from tests.families import FAMILIES


@pytest.fixture(scope="module")
def text_operators(tiny_text: DiffusionPipeline) -> tuple[Operator, ...]:
    return find_operators(tiny_text)


def test_levels_of_a_unet_are_those_of_its_parts(text_operators: tuple[Operator, ...]) -> None:
    """Also of a block that changes its width, and of one whose blocks are blocks themselves."""
    levels = {operator.name: operator.granularity for operator in text_operators}
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    blocks = ("mid_block", "down_blocks.0.resnets.0", "down_blocks.1.resnets.0", "down_blocks.0.attentions.0", block)
    assert {levels[name] for name in blocks} == {"block"}
    assert {levels[f"{block}.{branch}"] for branch in ("attn1", "attn2", "ff")} == {"branch"}
    leaves = (f"{block}.norm1", f"{block}.attn1.to_q", "down_blocks.0.resnets.0.conv1", "conv_norm_out")
    assert {levels[name] for name in leaves} == {"leaf"}


@pytest.mark.parametrize(
    ("name", "blocks", "branch"),
    [
        ("flux", r"(single_)?transformer_blocks\.\d+", "transformer_blocks.0.attn"),
        ("stable-diffusion-3", r"transformer_blocks\.\d+", "transformer_blocks.0.ff"),
        ("wan", r"blocks\.\d+", "blocks.0.ffn"),
        ("hunyuan-dit", r"blocks\.\d+", "blocks.0.attn2"),
    ],
)
def test_blocks_of_a_transformer_are_the_items_of_its_lists(name: str, blocks: str, branch: str) -> None:
    """Although a block may return a tuple, carry its input on through a projection, or come before others alike."""
    family = FAMILIES[name]
    found = find_operators(family.pipeline(), family.component, family.call, granularity="branch")
    assert all(re.fullmatch(blocks, name) for name in names_of(at_granularity(found, "block")))
    assert branch in names_of(found)
    assert {operator.granularity for operator in found} == {"block", "branch"}


def test_each_granularity_holds_the_coarser_ones(tiny_text: DiffusionPipeline) -> None:
    block, branch, leaf = (set(names_of(find_operators(tiny_text, granularity=level))) for level in GRANULARITIES)
    assert block < branch < leaf == set(names_of(find_operators(tiny_text)))


def test_large_networks_are_not_scored_leaf_by_leaf() -> None:
    with torch.device("meta"):
        small, large = (nn.Linear(1000, side, bias=False) for side in (1_999_999, 2_000_000))
    assert (default_granularity(small), default_granularity(large)) == ("leaf", "branch")


def test_patterns_are_of_all_operators_and_the_granularity_of_what_they_leave(tiny_text: DiffusionPipeline) -> None:
    chosen = find_operators(tiny_text, granularity="branch", ignore="*.norm*", targets="mid_block*")
    assert chosen == at_granularity(find_operators(tiny_text, targets="mid_block*"), "branch")
    with pytest.raises(NothingToRemove, match="granularity='block' leaves none of"):
        find_operators(tiny_text, granularity="block", targets="*.attn1")


def test_another_granularity_is_refused_in_one_line(tiny: DiffusionPipeline) -> None:
    wrong: Any = "blocks"
    with pytest.raises(NothingToRemove, match=r"granularity 'blocks' does not exist; did you mean 'block'\?"):
        find_operators(tiny, granularity=wrong)


def test_native_operators_are_those_that_the_class_can_do_without(tiny_transformer: DiffusionPipeline) -> None:
    denoiser = find_denoiser(tiny_transformer)
    assert names_of(choose_operators(denoiser, native=True)) == ["transformer_blocks.1"]
    with pytest.raises(NothingToRemove, match="native=True"):
        choose_operators(denoiser, native=True, targets="*.attn1")


def test_patterns_choose_operators_by_their_dotted_names(tiny: DiffusionPipeline) -> None:
    chosen = find_operators(tiny, ignore=["*.norm*", "mid_block"], targets=["mid_block*", "*attentions.?"])
    expected = [
        operator
        for operator in find_operators(tiny)
        if (operator.name.startswith("mid_block") or operator.name[:-1].endswith("attentions."))
        and ".norm" not in operator.name
        and operator.name != "mid_block"
    ]
    assert list(chosen) == expected != []


def names_of(operators: Iterable[Operator]) -> list[str]:
    return [operator.name for operator in operators]


def test_targets_keep_the_operators_with_a_matching_name(
    tiny_text: DiffusionPipeline, text_operators: tuple[Operator, ...]
) -> None:
    chosen = find_operators(tiny_text, targets=["*.attn1", "*.attn2"])
    assert chosen == tuple(operator for operator in text_operators if operator.name.endswith((".attn1", ".attn2")))
    assert find_operators(tiny_text, targets="*.attn?") == chosen != ()


def test_ignoring_a_block_leaves_its_parts_and_a_star_leaves_none(tiny: DiffusionPipeline) -> None:
    assert "mid_block.resnets.0" in names_of(find_operators(tiny, ignore="mid_block"))
    assert not any(name.startswith("mid_block") for name in names_of(find_operators(tiny, ignore="mid_block*")))


@pytest.mark.parametrize(
    ("patterns", "seen"),
    [
        ({"ignore": ["*.attn3"]}, "*.attn3"),
        ({"targets": ["*.attn3"]}, "*.attn3"),
        ({"targets": ["conv_in"]}, "conv_in"),
    ],
    ids=["ignores nothing", "no such target", "target that cannot be removed"],
)
def test_patterns_that_match_nothing_are_refused_in_one_line(
    tiny_text: DiffusionPipeline, patterns: dict[str, Any], seen: str
) -> None:
    with pytest.raises(OperatorNotFound) as caught:
        find_operators(tiny_text, **patterns)
    assert repr(seen) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.case(number=11)
def test_an_argument_that_the_call_does_not_take_is_refused(tiny: DiffusionPipeline) -> None:
    with pytest.raises(ProbeError, match=r"no argument 'ata'; did you mean 'eta'\?"):
        find_operators(tiny, call={"ata": 0.5})


def test_patterns_that_leave_nothing_are_refused(tiny: DiffusionPipeline) -> None:
    with pytest.raises(NothingToRemove, match="leave no operator"):
        find_operators(tiny, ignore="mid_block*", targets="mid_block*")
