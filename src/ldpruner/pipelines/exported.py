"""Exported networks as components of a pipeline: another runtime computes them."""

import copy
import shutil
from collections.abc import Callable, Container, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from torch import nn
from torch.utils._pytree import tree_unflatten, treespec_loads

from ldpruner.errors import ExportError, PipelineNotFound, one_line
from ldpruner.pipelines.flat_calls import CallLayout, FlatCall
from ldpruner.pipelines.index import index_components
from ldpruner.pipelines.meta import meta_component
from ldpruner.pipelines.offload import module_device
from ldpruner.pipelines.sessions import FILES, Session, open_session
from ldpruner.values import Value, check_choice, first_fault

DESCRIPTION = "exported.json"  # beside the file of the network
CPU = torch.device("cpu")
ADVICE = "change the torch pipeline, and export again"


class Parity(Value):
    """How far an exported network is from the torch one.

    Attributes:
        difference: relative difference of the latents of a whole denoising run.
        tolerance: the most that is accepted.
        samples, steps: of that run.
    """

    difference: float
    tolerance: float
    samples: int
    steps: int


class ExportDescription(Value):
    """What a folder says about its exported network.

    Attributes:
        format: onnx, openvino or torch-export.
        dtype: of the weights.
        layout: the inputs.
        output: how the outputs are nested, as torch writes it.
        free: which sizes are: batch and size, batch, or none.
        parity: None until it is measured.
        versions: of the packages that made the file.
    """

    format: str
    dtype: str
    layout: CallLayout
    output: str
    free: str = "none"
    parity: Parity | None = None
    versions: dict[str, str] = Field(default_factory=dict)


class ExportedNetwork(nn.Module):
    """A network whose calls another runtime computes.

    It has the class, the configuration and the modules of the network that was exported, because pipelines read them.
    Its weights are zeros that take no memory. On the meta device its own code runs, so that its MACs can be counted.
    """

    description: ExportDescription
    folder: Path
    _sessions: "_Sessions"
    _modules_when_opened: list[Any]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Computes a call in the other runtime.

        Raises:
            ExportError: the call differs from the exported one, or modules were changed, which has no effect.
        """
        original: Any = super().forward
        call = FlatCall.of(original, args, kwargs)
        if any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in call.leaves.values()):
            return original(*args, **kwargs)
        if _modules_of(self) != self._modules_when_opened:
            raise ExportError(f"{type(self).__name__} is exported, so changes of its modules have no effect: {ADVICE}")
        layout = self.description.layout
        outputs = self._sessions.on(module_device(self))(layout.tensors(call.leaves))
        dtype = _called_in(layout, call.leaves)
        outputs = [output.to(dtype) if dtype and output.is_floating_point() else output for output in outputs]
        return tree_unflatten(outputs, treespec_loads(self.description.output))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves to a device; the dtype stays that of the file."""
        _fill_with_placeholders_(self, lambda weight: (fn(weight.new_zeros(())).device, weight.dtype))
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy with the same runtime, and with placeholders for weights as well."""
        for weight in (*self.parameters(), *self.buffers()):
            memo.setdefault(id(weight), weight)
        duplicate = type(self).__new__(type(self))
        memo[id(self)] = duplicate
        vars(duplicate).update(copy.deepcopy(vars(self), memo))
        duplicate._modules_when_opened = _modules_of(duplicate)
        return duplicate

    def save_pretrained(self, save_directory: str | Path, safe_serialization: bool = True, **_: Any) -> None:
        """Copies the files of the exported network."""
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            shutil.copyfile(path, target / path.name)


class _Sessions:
    """The sessions of an exported network, one for each device. Copies of the network share them."""

    def __init__(self, file_format: str, folder: Path, trusted: bool) -> None:
        self._file_format, self._folder, self._trusted = file_format, folder, trusted
        self._opened: dict[torch.device, Session] = {}

    def on(self, device: torch.device) -> Session:
        """The session of a device."""
        if device not in self._opened:
            self._opened[device] = open_session(self._file_format, self._folder, device, trusted=self._trusted)
        return self._opened[device]

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Sessions":
        return self


def open_exported(folder: Path, library: str, class_name: str, *, trusted: bool) -> ExportedNetwork:
    """Opens an exported network.

    Args:
        folder: of the component.
        library, class_name: of the network that was exported, as in the index.
        trusted: whether a file may be opened even if that can run code.

    Raises:
        PipelineNotFound: its description cannot be read.
        ExportError, UnsafeFile: see `open_session`.
    """
    description = _read_description(folder / DESCRIPTION)
    network: Any = meta_component(folder, library, class_name)
    dtype = getattr(torch, description.dtype)
    _fill_with_placeholders_(network, lambda weight: (CPU, dtype if weight.is_floating_point() else weight.dtype))
    base: Any = type(network)
    network.__class__ = _exported_class(base)
    network.description, network.folder = description, folder
    network._sessions = _Sessions(description.format, folder, trusted)
    network._sessions.on(CPU)  # a damaged file is an error now
    network._modules_when_opened = _modules_of(network)
    assert isinstance(network, ExportedNetwork)
    return network


def exported_components(folder: Path, replaced: Container[str], *, trusted: bool) -> dict[str, ExportedNetwork]:
    """The exported networks of a pipeline's folder, opened."""
    return {
        name: open_exported(folder / name, *entry, trusted=trusted)
        for name, entry in index_components(folder).items()
        if name not in replaced and (folder / name / DESCRIPTION).is_file()
    }


def check_not_exported(network: nn.Module) -> None:
    """Raises ExportError for an exported network: its modules do not run, so removing them would change nothing."""
    if isinstance(network, ExportedNetwork):
        raise ExportError(f"{type(network).__name__} is exported and cannot be changed; {ADVICE}")


def _read_description(path: Path) -> ExportDescription:
    try:
        description = ExportDescription.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise PipelineNotFound(f"{path} {first_fault(error)}; export again") from error
    except OSError as error:
        raise PipelineNotFound(f"cannot read {path}: {one_line(error)}; export again") from error
    check_choice(f"{path}: format", description.format, FILES, PipelineNotFound)
    return description


@cache
def _exported_class(base: Any) -> Any:
    """A class that passes for the class of the network that was exported."""
    body = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (ExportedNetwork, base), body)


def _fill_with_placeholders_(
    network: nn.Module, place: Callable[[torch.Tensor], tuple[torch.device, torch.dtype]]
) -> None:
    """Replaces all weights and buffers by zeros of the same size, each of a single stored element."""
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(_zeros(weight, *place(weight)), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _zeros(buffer, *place(buffer))


def _zeros(like: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros((), device=device, dtype=dtype).expand(like.shape)


def _modules_of(network: nn.Module) -> list[Any]:
    """What tells whether somebody has replaced, wrapped or hooked the modules inside a network."""
    return [
        (id(module), "forward" in vars(module), len(module._forward_hooks), len(module._forward_pre_hooks))
        for module in network.modules()
        if module is not network
    ]


def _called_in(layout: CallLayout, leaves: Mapping[str, Any]) -> torch.dtype | None:
    """The dtype of a call, if it is not the one of the file: the outputs shall have it too."""
    for expected in layout.inputs:
        value = leaves[expected.path]
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return None if value.dtype == getattr(torch, expected.dtype) else value.dtype
    return None
