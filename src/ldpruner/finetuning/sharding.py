"""Fully sharded data parallelism: each process holds a part of the weights, gradients and moments in training.

It is torch's own (FSDP2), as `accelerate config` sets it up. Accelerate itself shards on accelerators only.
"""

import contextlib
import copy
import os
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ldpruner.errors import FinetuningError

FSDP, DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"  # as Accelerate's launcher sets them


def wants_sharding() -> bool:
    """Whether the launcher asks for FSDP, for more than one process."""
    return os.environ.get(FSDP, "").lower() == "true" and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def without_accelerates_own() -> Iterator[None]:
    """Accelerate sets up data parallelism inside the context, not FSDP.

    Raises:
        FinetuningError: the launcher asks for DeepSpeed.
    """
    if os.environ.get(DEEPSPEED, "").lower() == "true":
        raise FinetuningError("DeepSpeed is not supported; choose FSDP in `accelerate config`")
    asked = os.environ.pop(FSDP, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[FSDP] = asked


def sharded_copy(network: nn.Module, accelerator: Accelerator) -> nn.Module:
    """A copy of a network whose weights are shared among the processes, each block by itself; its class is torch's."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    # the outermost weights too are given back after each call: validation changes them between calls
    options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": plugin.reshard_after_forward is not False}
    if plugin.cpu_offload:
        options["offload_policy"] = plugin.cpu_offload
    shared = copy.deepcopy(network)
    for block in list(_blocks(shared)):
        fully_shard(block, **options)
    fully_shard(shared, **{**options, "reshard_after_forward": True})
    return shared


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost blocks of a network: the items of its lists."""
    for child in module.children():
        if isinstance(child, nn.ModuleList) and not any(isinstance(item, nn.ModuleList) for item in child):
            yield from child
        else:
            yield from _blocks(child)


def is_sharded(network: nn.Module) -> bool:
    return any(isinstance(weight, DTensor) for weight in network.parameters())


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the parts of all processes, which all have to ask for it; put together on the CPU."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, target: Tensor) -> Tensor:
    """A whole tensor, shared among the processes as another one is."""
    if not isinstance(target, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor, target.device_mesh, target.placements)


@torch.no_grad()
def gather_(network: nn.Module, shared: nn.Module) -> None:
    """Copies the weights of a sharded copy into the network that it was made of."""
    own = dict(network.named_parameters())
    for name, weight in shared.named_parameters():
        own[name].data = whole(weight.detach()).to(own[name].device)
    for buffer, other in zip(network.buffers(), shared.buffers(), strict=True):
        buffer.copy_(other)
