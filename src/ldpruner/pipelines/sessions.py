"""Runs the files of exported networks: ONNX Runtime, OpenVINO, and torch's exported programs."""

import importlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.export.passes import move_to_device_pass

from ldpruner.errors import ExportError, UnsafeFile, one_line

# Runs a network on its tensors, in their order.
Session: TypeAlias = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]

FILES = {"onnx": "model.onnx", "openvino": "model.xml", "torch-export": "model.pt2"}
PACKAGES = {"onnx": ("onnxruntime",), "openvino": ("openvino",), "torch-export": ()}


def open_session(file_format: str, folder: Path, device: torch.device, *, trusted: bool) -> Session:
    """Opens the file of an exported network to run it on a device.

    Args:
        file_format: one of FILES.
        folder: of the file.
        device: ONNX Runtime runs there if it can; OpenVINO on the CPU.
        trusted: whether the file may be opened even if that can run code.

    Raises:
        UnsafeFile: it was written by torch.export, and is not trusted.
        ExportError: a package is missing, or the file cannot be read.
    """
    packages = [import_package(name, file_format) for name in PACKAGES[file_format]]
    path = folder / FILES[file_format]
    if file_format == "torch-export" and not trusted:
        raise UnsafeFile(
            f"{path} can run code when torch opens it; if you trust where it comes from, load it with "
            "trust_programs=True, or export to onnx or openvino"
        )
    try:
        return _OPENERS[file_format](path, device, *packages)
    except Exception as error:
        raise ExportError(f"cannot open {path}: {one_line(error)}; export again") from error


def import_package(name: str, file_format: str) -> Any:
    """A package that a format needs.

    Raises:
        ExportError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(f"format {file_format} needs {name}: pip install 'ld-pruner[export]'") from error


def _onnx_session(path: Path, device: torch.device, onnxruntime: Any) -> Session:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 4  # errors are raised
    wanted = ["CUDAExecutionProvider"] * (device.type == "cuda") + ["CPUExecutionProvider"]
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    session = onnxruntime.InferenceSession(path, settings, providers=providers)
    names = [value.name for value in session.get_inputs()]

    def run(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return _to_torch(session.run(None, dict(zip(names, _to_numpy(tensors), strict=True))), tensors)

    return run


def _openvino_session(path: Path, device: torch.device, openvino: Any) -> Session:
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # a processor with bfloat16 would compute in it
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(path, "CPU", settings)

    def run(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        results = compiled(_to_numpy(tensors))
        return _to_torch([np.array(results[place]) for place in range(len(compiled.outputs))], tensors)

    return run


def _program_session(path: Path, device: torch.device) -> Session:
    program = torch.export.load(path)
    places = {tensor.device for tensor in (*program.state_dict.values(), *program.constants.values())}
    if places - {device}:
        program = move_to_device_pass(program, device)
    # Some guards exclude sizes by chance, such as `16 * (width // 2) != 128`; the sizes are checked before
    has_guards = "check_guards" in inspect.signature(program.module).parameters
    network = program.module(**({"check_guards": False} if has_guards else {}))

    def run(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return list(network(*(tensor.to(device) for tensor in tensors)))

    return run


_OPENERS: dict[str, Callable[..., Session]] = {
    "onnx": _onnx_session,
    "openvino": _openvino_session,
    "torch-export": _program_session,
}


def _to_numpy(tensors: Sequence[torch.Tensor]) -> list[Any]:
    return [tensor.detach().cpu().contiguous().numpy() for tensor in tensors]


def _to_torch(arrays: Sequence[Any], inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    device = inputs[0].device
    return [torch.from_numpy(array).to(device) for array in arrays]
