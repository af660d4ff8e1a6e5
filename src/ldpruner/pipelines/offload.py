"""CPU offload, as diffusers asks Accelerate for it: networks that are on their device only while they are called.

It is done by hooks on the networks, which also hold other networks, or the weights themselves.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from accelerate.hooks import ModelHook
from diffusers import DiffusionPipeline
from torch import nn

Offload: TypeAlias = Callable[[DiffusionPipeline], None]


def is_offloaded(network: nn.Module) -> bool:
    """Whether hooks bring the weights of a network to its device and take them away again."""
    return bool(hooks_of(network))


def hooks_of(network: nn.Module) -> list[Any]:
    """Accelerate's hooks on a network and its modules."""
    return [part._hf_hook for part in network.modules() if hasattr(part, "_hf_hook")]


def execution_device(network: nn.Module) -> torch.device | None:
    """Where an offloaded network computes; None for one that is where its weights are."""
    devices = (getattr(hook, "execution_device", None) for hook in hooks_of(network))
    found = next((device for device in devices if device is not None), None)
    return torch.device(found) if found is not None else None


def without_hooks(network: nn.Module) -> dict[int, Any]:
    """For a deep copy: what takes the place of the hooks, so that what they hold is not copied."""
    return {id(hook): ModelHook() for hook in hooks_of(network)}


@contextlib.contextmanager
def loaded(pipeline: DiffusionPipeline) -> Iterator[Offload]:
    """The networks of a pipeline without their hooks for a while; gives what offloads another pipeline alike."""
    offload = _offload_of(pipeline)
    if offload is None:
        yield lambda _: None
        return
    pipeline.remove_all_hooks()
    try:
        yield offload
    finally:
        offload(pipeline)


def _offload_of(pipeline: DiffusionPipeline) -> Offload | None:
    device = getattr(pipeline, "_offload_device", None)
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    if device is None or not any(map(is_offloaded, parts)):
        return None
    kind = "model" if getattr(pipeline, "_all_hooks", None) else "sequential"
    return lambda one: getattr(one, f"enable_{kind}_cpu_offload")(device=device)
