"""Tells networks apart by their architecture, their weights and their dtype."""

import hashlib
import json

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ldpruner.values import Value

EDGE = 256  # weights that are read at each end of a tensor


class Architecture(Value):
    """What two networks must share for the plan of one to apply to the other.

    Attributes:
        name: the class.
        parameters: how many weights.
        digest: hash of the names and shapes of all weights.
    """

    name: str
    parameters: int
    digest: str


def count_parameters(*modules: nn.Module) -> int:
    """How many weights some modules have; shared weights count once."""
    weights = {id(weight): weight.numel() for module in modules for weight in module.parameters()}
    return sum(weights.values())


def module_dtype(module: nn.Module) -> torch.dtype:
    """The dtype that a network computes in. Some of its weights may be kept in float32."""
    dtype = getattr(module, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else next(module.parameters()).dtype


def architecture(module: nn.Module) -> Architecture:
    """The architecture of a network."""
    shapes = {name: list(weight.shape) for name, weight in module.state_dict().items()}
    digest = hashlib.blake2b(json.dumps(shapes, sort_keys=True).encode(), digest_size=8).hexdigest()
    return Architecture(name=type(module).__name__, parameters=count_parameters(module), digest=digest)


def weights_digest(module: nn.Module) -> str:
    """Hash of both ends of every weight: it tells checkpoints apart, in a second even for a large network."""
    digest = hashlib.blake2b(digest_size=8)
    for name, weight in module.state_dict().items():
        digest.update(name.encode())
        for tensor in _plain_tensors(weight.detach()):
            flat = tensor.flatten()
            edges = torch.cat([flat[:EDGE], flat[-EDGE:]]).float().cpu()
            digest.update(edges.numpy().tobytes())
    return digest.hexdigest()


def _plain_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensor itself; of a quantised one those that it is made of, such as integers and scales."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _plain_tensors(getattr(tensor, name))]
