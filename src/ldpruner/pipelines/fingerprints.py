"""Telling one network from another: its architecture, its weights, and their precision."""

import hashlib
import json

import torch
from torch import nn

from ldpruner.values import Value

SAMPLED = 256  # weights at each end of a tensor


class Architecture(Value):
    """What a plan's network and another one must share for the plan to apply.

    Attributes:
        name: the class.
        parameters: how many weights.
        digest: of the names and shapes of all weights.
    """

    name: str
    parameters: int
    digest: str


def count_parameters(module: nn.Module) -> int:
    """How many weights a module has, shared ones counted once."""
    return sum(weight.numel() for weight in module.parameters())


def precision(module: nn.Module) -> torch.dtype:
    """What a network computes in; some of its weights may be kept in full precision."""
    known = getattr(module, "dtype", None)
    return known if isinstance(known, torch.dtype) else next(module.parameters()).dtype


def architecture(module: nn.Module) -> Architecture:
    """The architecture of a network."""
    shapes = {name: list(weight.shape) for name, weight in module.state_dict().items()}
    digest = hashlib.blake2b(json.dumps(shapes, sort_keys=True).encode(), digest_size=8).hexdigest()
    return Architecture(name=type(module).__name__, parameters=count_parameters(module), digest=digest)


def weights_digest(module: nn.Module) -> str:
    """Tells one checkpoint from another by both ends of every weight: a second even for a large network."""
    digest = hashlib.blake2b(digest_size=8)
    for name, weight in module.state_dict().items():
        flat = weight.detach().flatten()
        ends = torch.cat([flat[:SAMPLED], flat[-SAMPLED:]]).float().cpu()
        digest.update(name.encode() + ends.numpy().tobytes())
    return digest.hexdigest()
