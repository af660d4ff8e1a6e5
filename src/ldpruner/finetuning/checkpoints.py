"""A training run's state as one safetensors file: written whole or not at all, and never unpickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ldpruner.errors import FinetuningError, StorageError, one_line

SUFFIX = ".safetensors"


def write_checkpoint(path: Path, parts: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
    """Writes named groups of tensors, and facts that JSON can say.

    Raises:
        StorageError: the file cannot be written; the checkpoint before it is still there.
    """
    tensors = {
        f"{part}/{name}": one.detach().contiguous() for part, them in parts.items() for name, one in them.items()
    }
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(tensors, partial, metadata={"facts": json.dumps(facts)})
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot write {path}: {one_line(error)}") from error


def read_checkpoint(path: Path, device: torch.device) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What `write_checkpoint` wrote.

    Raises:
        FinetuningError: the file is no checkpoint.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    try:
        with safetensors.safe_open(path, framework="pt", device=str(device)) as opened:
            facts: dict[str, Any] = json.loads(opened.metadata()["facts"])
            for key in opened.keys():  # noqa: SIM118  (it is no mapping)
                part, _, name = key.partition("/")
                parts.setdefault(part, {})[name] = opened.get_tensor(key)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise FinetuningError(f"{path} is no checkpoint: {one_line(error)}; delete it to begin again") from error
    return parts, facts


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer that keeps tensors for each weight, by the weight's place and the tensor's name."""
    state = optimizer.state_dict()["state"]
    return {f"{place}/{name}": torch.as_tensor(one) for place, them in state.items() for name, one in them.items()}


def restore_optimizer_(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Gives an optimizer the state that `optimizer_tensors` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        place, _, name = key.partition("/")
        state.setdefault(int(place), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
