"""Captures a denoiser with torch.export, and writes it as ONNX, OpenVINO or as torch's own program."""

import contextlib
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_leaves, treespec_dumps

from ldpruner.errors import ExportError, is_out_of_memory, one_line
from ldpruner.exporting.recording import Variant
from ldpruner.pipelines.flat_calls import FlatCall
from ldpruner.pipelines.running import force_eager
from ldpruner.pipelines.sessions import FILES, import_package
from ldpruner.pipelines.state import evaluation_mode, without_caches

PACKAGES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino", "onnx", "onnxscript"),
    "torch-export": (),
}
OPERATOR = re.compile(r"(?:aten|prims|higher_order|torchvision|_operator)(?:::|\.)\w+(?:\.\w+)?")


class FlatNetwork(nn.Module):
    """A denoiser that takes the tensors of its call as a flat list, and returns tensors only."""

    def __init__(self, network: nn.Module, call: FlatCall, paths: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self._call, self._paths = call, tuple(paths)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tree_leaves(self.output(tensors)))

    def output(self, tensors: Sequence[torch.Tensor]) -> Any:
        """What the network itself returns."""
        leaves = {**self._call.leaves, **dict(zip(self._paths, tensors, strict=True))}
        args, kwargs = self._call.arguments(leaves)
        return self.network(*args, **kwargs)


@contextlib.contextmanager
def as_used(network: nn.Module) -> Iterator[None]:
    """Runs a network as it is used: no gradients, no dropout, nothing compiled, nothing cached."""
    with torch.no_grad(), evaluation_mode(network), without_caches(network), force_eager():
        yield


def output_layout(network: FlatNetwork, tensors: Sequence[torch.Tensor]) -> str:
    """How the outputs of a network are nested, as torch writes it.

    Raises:
        ExportError: it returns more than tensors.
    """
    with as_used(network.network):
        leaves, spec = tree_flatten(network.output([tensor.clone() for tensor in tensors]))
    if other := [leaf for leaf in leaves if not isinstance(leaf, torch.Tensor)]:
        raise ExportError(f"{type(network.network).__name__} returns {type(other[0]).__name__} beside tensors")
    return str(treespec_dumps(spec))


def capture(network: FlatNetwork, variant: Variant, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The program of a network: a torch.export.ExportedProgram."""
    auto = torch.export.Dim.AUTO
    shapes = tuple(dict.fromkeys(sorted(variant.free[path]), auto) or None for path in tensors)
    with as_used(network.network), _quiet():
        return torch.export.export(network, tuple(tensors.values()), dynamic_shapes={"tensors": shapes}, strict=False)


def write_program(program: Any, file_format: str, folder: Path, names: Sequence[str]) -> None:
    """Writes a program to a folder in a format."""
    path = folder / FILES[file_format]
    with torch.no_grad(), _quiet():
        if file_format == "onnx":
            _write_onnx(program, path, names)
        elif file_format == "openvino":  # through ONNX: its own reader of programs lacks operators, and fixes sizes
            openvino = import_package("openvino", file_format)
            with tempfile.TemporaryDirectory(dir=folder) as place:
                _write_onnx(program, Path(place, FILES["onnx"]), names)
                openvino.save_model(openvino.convert_model(Path(place, FILES["onnx"])), path, compress_to_fp16=False)
        else:
            torch.export.save(program, path)


def _write_onnx(program: Any, path: Path, names: Sequence[str]) -> None:
    _drop_empty_squeezes_(program.graph_module)
    options: dict[str, Any] = {"input_names": list(names), "external_data": True, "verbose": False}
    torch.onnx.export(program, (), path, dynamo=True, **options)


def _drop_empty_squeezes_(graph_module: torch.fx.GraphModule) -> None:
    """Drops squeezes of dimensions that are not 1: they do nothing in torch, and are an error in ONNX."""
    for node in graph_module.graph.find_nodes(op="call_function", target=torch.ops.aten.squeeze.dim):
        source, place = node.args
        if source.meta["val"].shape[place] != 1:
            node.replace_all_uses_with(source)
            graph_module.graph.erase_node(node)
    graph_module.recompile()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of exporters about their own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def failure(error: BaseException, file_format: str, network: nn.Module) -> ExportError:
    """Why a network could not be written, in one line that names the operator if the exporter does."""
    if is_out_of_memory(error):
        raise MemoryError(one_line(error)) from error
    messages = []
    cause: BaseException | None = error
    while cause is not None:
        messages.append(str(cause))
        cause = cause.__cause__
    text = " ".join(messages)
    missing = re.search(r"(?:No ONNX function found|No decompositions|No conversion rule|not supported)", text)
    operators = dict.fromkeys(OPERATOR.findall(text)) if missing else {}
    names = f" (it has no {', '.join(list(operators)[:3])})" if operators else ""
    return ExportError(
        f"{type(network).__name__} cannot be exported to {file_format}{names}: {one_line(error)}; try another format"
    )
