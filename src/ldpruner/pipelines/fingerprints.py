"""Tells networks apart by their architecture, their weights and their dtype."""

import hashlib
import json
import math

import torch
from pydantic import Field
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ldpruner.values import Value

EDGE = 256  # weights that are read at each end of a tensor


class Architecture(Value):
    """What tells a network from others, but not its weights' values.

    Attributes:
        name: the class.
        parameters: how many weights.
        digest: hash of the names and shapes of all weights.
        blocks: the length of each list of blocks, by its name; empty where an earlier version did not record it.
    """

    name: str
    parameters: int
    digest: str
    blocks: dict[str, int] = Field(default_factory=dict)


def count_parameters(*modules: nn.Module) -> int:
    """How many weights some modules have; shared weights count once."""
    weights = {id(weight): count_values(weight) for module in modules for weight in module.parameters()}
    return sum(weights.values())


def count_values(weight: torch.Tensor) -> int:
    """How many values a weight has: an element that bitsandbytes or GGUF has quantised may hold several."""
    shape = getattr(weight, "quant_shape", None) or getattr(getattr(weight, "quant_state", None), "shape", None)
    return math.prod(shape or weight.shape)


def module_dtype(module: nn.Module) -> torch.dtype:
    """The dtype that a network computes in. Some of its weights may be kept in float32."""
    dtype = getattr(module, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else next(module.parameters()).dtype


def architecture(module: nn.Module) -> Architecture:
    """The architecture of a network."""
    shapes = {name: list(weight.shape) for name, weight in module.state_dict().items()}
    digest = hashlib.blake2b(json.dumps(shapes, sort_keys=True).encode(), digest_size=8).hexdigest()
    name, parameters = type(module).__name__, count_parameters(module)
    return Architecture(name=name, parameters=parameters, digest=digest, blocks=count_blocks(module))


def count_blocks(module: nn.Module) -> dict[str, int]:
    """The length of each list of modules that have parts themselves, by its name."""
    lists = {name: part for name, part in module.named_modules() if isinstance(part, nn.ModuleList)}
    return {name: len(part) for name, part in lists.items() if all(any(block.children()) for block in part)}


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
