"""Stand-ins for removed modules, and the names of the others."""

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformerBlock
from torch import nn

from ldpruner import stand_ins


def test_names_move_up_where_modules_left_a_list() -> None:
    removed = ["blocks.0", "blocks.2", "mid_block", "up_blocks.1.attentions"]
    names = ("blocks.1.norm.weight", "blocks.3", "blocks.2.attn", "up_blocks.1.attentions.0", "up_blocks.1.resnets.0")
    moved = [stand_ins.new_name(name, removed) for name in names]
    assert moved == ["blocks.0.norm.weight", "blocks.1", None, None, "up_blocks.1.resnets.0"]
    kept = [(old, new) for old, new in zip(names, moved, strict=True) if new is not None]
    assert all(stand_ins.old_name(new, removed) == old for old, new in kept)


@pytest.mark.parametrize(
    ("selector", "args", "kwargs", "expected"),
    [(1, ("a", "b"), {}, "b"), ("state", ("a",), {"state": "b"}, "b"), (None, ("a",), {}, None)],
)
def test_a_selector_chooses_an_argument(
    selector: int | str | None, args: tuple[str, ...], kwargs: dict[str, str], expected: str | None
) -> None:
    assert stand_ins.select_input(selector, args, kwargs) == expected


def test_position_zero_is_the_first_tensor_if_all_arguments_are_named() -> None:
    tensor = torch.ones(1)
    assert stand_ins.select_input(0, (), {"scale": 2, "values": tensor}) is tensor


def test_replacements_return_inputs_zeros_or_the_shortcut() -> None:
    first, second = torch.ones(2), torch.full((3,), 2.0)
    assert stand_ins.Identity(1)(first, second) is second
    assert stand_ins.Identity(["b", None])(a=first, b=second) == (second, None)
    assert torch.equal(stand_ins.Zero(1)(first, second), torch.zeros(3))
    assert [output.tolist() for output in stand_ins.Zero([1, 0])(first, second)] == [[0, 0, 0], [0, 0]]
    projection = nn.Linear(2, 3)
    assert torch.equal(stand_ins.Shortcut("projection", projection)(first), projection(first))


def test_a_replacement_keeps_the_plain_attributes_of_the_module() -> None:
    replacement: Any = stand_ins.replacement(nn.Conv2d(2, 2, 3), "zero", 0)
    assert (replacement.in_channels, replacement.padding_mode) == (2, "zeros")
    assert not list(replacement.parameters())
    with pytest.raises(ValueError, match="unknown modification 'halve'"):
        stand_ins.replacement(nn.SiLU(), "halve", 0)


@pytest.mark.case(number=40)
@pytest.mark.parametrize("source", [["encoder_hidden_states", "hidden_states"], [1, 0]])
@pytest.mark.parametrize("positional", [0, 1, 2, 4])
def test_a_stand_in_finds_its_inputs_however_they_are_passed(source: list[int | str], positional: int) -> None:
    arguments = {name: torch.full((2,), place) for place, name in enumerate(parameters(FluxTransformerBlock)[:4])}
    by_position = list(arguments.values())[:positional]
    by_name = dict(list(arguments.items())[positional:])
    stand_in = flux_stand_in(source)
    for copied in (stand_in, copy.deepcopy(stand_in), pickle.loads(pickle.dumps(stand_in))):  # noqa: S301
        text, image = copied(*by_position, **by_name)
        assert text is arguments["encoder_hidden_states"]
        assert image is arguments["hidden_states"]


def test_a_missing_input_is_an_error() -> None:
    with pytest.raises(TypeError, match="'encoder_hidden_states', which is not among the arguments"):
        flux_stand_in(["encoder_hidden_states"])(torch.ones(1))


@pytest.mark.case(number=41)
@pytest.mark.parametrize("modification", ["identity", "zero"])
def test_a_stand_in_has_the_signature_of_what_it_replaces_and_a_name_that_says_so(modification: str) -> None:
    stand_in = flux_stand_in(0, modification)
    assert inspect.signature(stand_in.forward).parameters.keys() == set(parameters(FluxTransformerBlock))
    assert type(stand_in).__qualname__ == f"{modification.title()}[FluxTransformerBlock]"
    assert type(flux_stand_in(0, modification)) is type(stand_in)


@pytest.mark.case(number=42)
def test_a_stand_in_is_not_among_the_modules_of_a_network() -> None:
    network = nn.ModuleDict({"kept": nn.Linear(2, 2), "gone": nn.Linear(2, 2), "wide": Residual()})
    stand_ins.remove_(network, [removal("gone"), removal("wide", "shortcut", "projection")])
    assert [name for name, _ in network.named_modules()] == ["", "kept", "wide", "wide.projection"]
    assert isinstance(stand_ins.module_at(network, "gone.lora_A.weight"), stand_ins.Identity)
    assert isinstance(stand_ins.module_at(network, "wide.norm"), stand_ins.Shortcut)
    assert isinstance(stand_ins.module_at(network, "wide.projection"), nn.Linear)
    assert stand_ins.module_at(network, "kept.norm") is None


@pytest.mark.case(number=50)
def test_the_weights_of_blocks_alone_are_refused_where_some_are_gone() -> None:
    network = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2), Residual()]), "others": nn.ModuleList()})
    stand_ins.remove_(network, [removal("blocks.1.norm")])
    assert list(network.state_dict()) == ["blocks.0.weight", "blocks.0.bias", "blocks.1.projection.weight"]
    assert not network["others"].state_dict()
    with pytest.raises(ValueError, match=r"'1\.norm' has no weights; .* built from the original network"):
        network["blocks"].state_dict()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projection, self.norm = nn.Linear(2, 2, bias=False), nn.LayerNorm(2)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        output = self.projection(values) + self.norm(values)
        assert isinstance(output, torch.Tensor)
        return output


def removal(operator: str, modification: str = "identity", source: Any = 0) -> dict[str, Any]:
    return {"operator": operator, "modification": modification, "source": source, "cascaded": []}


def parameters(cls: Any) -> list[str]:
    return list(inspect.signature(cls.forward).parameters)[1:]


def flux_stand_in(source: Any, modification: str = "identity") -> Any:
    with torch.device("meta"):
        block = FluxTransformerBlock(8, 1, 8)
    return stand_ins.replacement(block, modification, source)
