"""Capturing and writing networks."""

from typing import Any

import pytest
import torch
from torch import nn

from ldpruner.errors import ExportError
from ldpruner.exporting.formats import FlatNetwork, _drop_empty_squeezes_, capture, failure, output_layout
from ldpruner.exporting.recording import Variant
from ldpruner.pipelines.flat_calls import FlatCall

SAMPLE = torch.ones(2, 3, 4)


class Squeezing(nn.Module):
    def forward(self, sample: torch.Tensor) -> Any:
        return {"sample": sample.squeeze(1)}


class Counting(nn.Module):
    def forward(self, sample: torch.Tensor) -> Any:
        return sample, 3


def flat(network: nn.Module) -> FlatNetwork:
    return FlatNetwork(network, FlatCall.of(network.forward, (SAMPLE,), {}), ["sample"])


def test_squeezes_without_effect_are_dropped_as_onnx_refuses_them() -> None:
    network = flat(Squeezing())
    variant = Variant(FlatCall.of(network.network.forward, (SAMPLE,), {}), {"sample": {0}}, (), 2, "batch")
    program = capture(network, variant, {"sample": SAMPLE})
    squeezes = {"op": "call_function", "target": torch.ops.aten.squeeze.dim}
    assert program.graph.find_nodes(**squeezes)
    _drop_empty_squeezes_(program.graph_module)
    assert not program.graph.find_nodes(**squeezes)
    (output,) = program.module()(SAMPLE[:1])
    assert output.shape == (1, 3, 4)


def test_the_layout_of_outputs_is_that_of_the_network() -> None:
    assert "sample" in output_layout(flat(Squeezing()), [SAMPLE])
    with pytest.raises(ExportError, match="Counting returns int beside tensors"):
        output_layout(flat(Counting()), [SAMPLE])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (
            "No ONNX function found for <OpOverload(op='aten.special_airy_ai', overload='default')>",
            "aten.special_airy_ai",
        ),
        ("No conversion rule found for operations: aten.special_airy_ai.default", "aten.special_airy_ai.default"),
        ("something else", ""),
    ],
)
def test_a_failure_names_the_operator_in_one_line(text: str, named: str) -> None:
    try:
        raise RuntimeError("many\nlines") from ValueError(text)
    except RuntimeError as error:
        problem = str(failure(error, "onnx", Squeezing()))
    assert problem.startswith("Squeezing cannot be exported to onnx")
    assert named in problem
    assert "\n" not in problem


def test_memory_that_runs_out_is_no_fault_of_the_network() -> None:
    with pytest.raises(MemoryError):
        failure(RuntimeError("DefaultCPUAllocator: can't allocate memory"), "onnx", Squeezing())
