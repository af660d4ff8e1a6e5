"""Calls of networks as flat lists of named tensors."""

from typing import Any

import pytest
import torch

from ldpruner.errors import ExportError
from ldpruner.pipelines.flat_calls import CallLayout, FlatCall, TensorInput, input_names

SAMPLE = torch.zeros(2, 4, 8, 8)


def forward(sample: Any, timestep: Any, added: Any = None, return_dict: bool = True) -> None:
    """Of a network."""


LAYOUT = CallLayout(
    inputs=(
        TensorInput(name="sample", path="sample", dtype="float32", shape=(None, 4, 8, 8)),
        TensorInput(name="timestep", path="timestep", dtype="int64", shape=()),
    ),
    constants={"return_dict": False},
)


def test_a_call_by_position_and_by_name_has_the_same_leaves() -> None:
    by_position = FlatCall.of(forward, (SAMPLE, 3), {"return_dict": False})
    by_name = FlatCall.of(forward, (), {"return_dict": False, "timestep": 3, "sample": SAMPLE})
    assert list(by_position.leaves) == list(by_name.leaves) == ["sample", "timestep", "return_dict"]


def test_nested_tensors_have_paths_and_come_back() -> None:
    call = FlatCall.of(forward, (SAMPLE, 3), {"added": {"text": SAMPLE, "rest": [SAMPLE, None]}})
    assert list(call.leaves) == ["sample", "timestep", "added.text", "added.rest.0", "added.rest.1"]
    args, kwargs = call.arguments({**call.leaves, "added.text": SAMPLE + 1})
    _, _, added = args
    assert torch.equal(added["text"], SAMPLE + 1)
    assert added["rest"][1] is None
    assert not kwargs


def test_numbers_become_tensors_where_they_change() -> None:
    call = FlatCall.of(forward, (SAMPLE, 3), {})
    assert list(call.tensors()) == ["sample"]
    assert call.tensors(["timestep"])["timestep"] == 3


def test_names_are_the_last_parts_where_these_are_unique() -> None:
    paths = ["sample", "added.text", "first.mask", "second.mask", "list.0"]
    assert input_names(paths) == ["sample", "text", "first.mask", "second.mask", "list.0"]


def test_tensors_are_cast_to_the_dtypes_of_the_file() -> None:
    tensors = LAYOUT.tensors({"sample": SAMPLE[:1].half(), "timestep": 3.0, "return_dict": False})
    assert [tensor.dtype for tensor in tensors] == [torch.float32, torch.int64]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"return_dict": True}, "exported with return_dict=False, not True"),
        ({"sample": torch.zeros(2, 4, 8, 16)}, r"sample is of size \[2, 4, 8, 16\], .* for \[any, 4, 8, 8\]"),
        ({"timestep": torch.zeros(2)}, r"timestep is of size \[2\]"),
        ({"mask": None}, "with or without mask"),
    ],
)
def test_another_call_is_refused_in_one_line(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ExportError, match=problem) as caught:
        LAYOUT.tensors({"sample": SAMPLE, "timestep": 3, "return_dict": False, **changes})
    assert "\n" not in str(caught.value)
