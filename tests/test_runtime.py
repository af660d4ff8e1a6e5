"""The code that is copied beside pruned weights."""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

from ldpruner import runtime
from tests.conftest import tiny_unet

REMOVALS = [
    {"operator": "mid_block.resnets.0", "modification": "identity", "source": 0, "cascaded": []},
    {"operator": "down_blocks.1.resnets.0", "modification": "shortcut", "source": "conv_shortcut", "cascaded": []},
]


def test_it_imports_nothing_of_ldpruner() -> None:
    tree = ast.parse(Path(runtime.__file__).read_text(encoding="utf-8"))
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert {str(module).partition(".")[0] for module in modules} <= {
        *("collections", "functools", "inspect", "pathlib", "typing"),
        *("diffusers", "safetensors", "torch"),
    }


@pytest.mark.parametrize(
    ("selector", "args", "kwargs", "expected"),
    [(1, ("a", "b"), {}, "b"), ("state", ("a",), {"state": "b"}, "b"), (None, ("a",), {}, None)],
)
def test_a_selector_chooses_an_argument(
    selector: int | str | None, args: tuple[str, ...], kwargs: dict[str, str], expected: str | None
) -> None:
    assert runtime.select_input(selector, args, kwargs) == expected


def test_position_zero_is_the_first_tensor_if_all_arguments_are_named() -> None:
    tensor = torch.ones(1)
    assert runtime.select_input(0, (), {"scale": 2, "values": tensor}) is tensor


def test_replacements_return_inputs_zeros_or_the_shortcut() -> None:
    first, second = torch.ones(2), torch.full((3,), 2.0)
    assert runtime.Identity(1)(first, second) is second
    assert runtime.Identity(["b", None])(a=first, b=second) == (second, None)
    assert torch.equal(runtime.Zero(1)(first, second), torch.zeros(3))
    assert [output.tolist() for output in runtime.Zero([1, 0])(first, second)] == [[0, 0, 0], [0, 0]]
    projection = nn.Linear(2, 3)
    assert torch.equal(runtime.Shortcut("projection", projection)(first), projection(first))


def test_a_replacement_keeps_the_plain_attributes_of_the_module() -> None:
    replacement: Any = runtime.replacement(nn.Conv2d(2, 2, 3), "zero", 0)
    assert (replacement.in_channels, replacement.padding_mode) == (2, "zeros")
    assert not list(replacement.parameters())
    with pytest.raises(ValueError, match="unknown modification 'halve'"):
        runtime.replacement(nn.SiLU(), "halve", 0)


def test_a_pruned_class_replays_its_removals() -> None:
    pruned_class = runtime.pruned_class(UNet2DModel)
    assert runtime.pruned_class(UNet2DModel) is pruned_class
    pruned = pruned_class.from_config({**tiny_unet().config, "removals": REMOVALS})
    assert type(pruned.mid_block.resnets[0]).__name__ == "Identity"
    assert [name for name, _ in pruned.down_blocks[1].resnets[0].named_children()] == ["conv_shortcut"]
    assert pruned.config["removals"] == REMOVALS


def test_a_saved_network_loads_bit_identically(tmp_path: Path) -> None:
    pruned_class = runtime.pruned_class(UNet2DModel)
    pruned = pruned_class.from_config({**tiny_unet().config, "removals": REMOVALS}).eval()
    pruned.save_pretrained(tmp_path)
    state, loaded = pruned.state_dict(), pruned_class.from_pretrained(tmp_path).state_dict()
    assert list(loaded) == list(state)
    assert all(torch.equal(weight, state[name]) for name, weight in loaded.items())


def test_only_the_main_process_saves(tmp_path: Path) -> None:
    pruned = runtime.pruned_class(UNet2DModel).from_config({**tiny_unet().config, "removals": REMOVALS})
    pruned.save_pretrained(tmp_path, is_main_process=False)
    assert not list(tmp_path.iterdir())


def test_casting_leaves_what_a_class_keeps_in_float32() -> None:
    class Mixed(nn.Module):
        _keep_in_fp32_modules = ("norm",)

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(2), nn.Linear(2, 2)
            self.register_buffer("steps", torch.arange(3))

    network: Any = Mixed()
    runtime.cast_(network, torch.float16)
    assert (network.norm.weight.dtype, network.linear.weight.dtype) == (torch.float32, torch.float16)
    assert network.steps.dtype == torch.int64
