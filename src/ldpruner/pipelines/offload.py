"""CPU offload as diffusers sets it up with Accelerate: hooks bring a network to its device while it is called.

The hooks also hold other networks, or the weights themselves.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from accelerate.hooks import ModelHook
from diffusers import DiffusionPipeline
from torch import nn

from ldpruner.errors import PlanMismatch

Offload: TypeAlias = Callable[[DiffusionPipeline], None]


def offload_hooks(network: nn.Module) -> list[Any]:
    """Accelerate's hooks on a network and its modules."""
    return [module._hf_hook for module in network.modules() if hasattr(module, "_hf_hook")]


def is_offloaded(network: nn.Module) -> bool:
    """Whether hooks move the weights of a network between devices."""
    return bool(offload_hooks(network))


def module_device(module: nn.Module, default: torch.device | None = None) -> torch.device:
    """Where a module computes, offloaded or not; `default`, or the CPU, for a module without weights."""
    devices = (getattr(hook, "execution_device", None) for hook in offload_hooks(module))
    offloaded = next((device for device in devices if device is not None), None)
    if offloaded is not None:
        return torch.device(offloaded)
    return next((weight.device for weight in module.parameters()), default or torch.device("cpu"))


def hook_placeholders(network: nn.Module) -> dict[int, Any]:
    """A memo for `copy.deepcopy` that leaves out the hooks, and with them the weights that they hold."""
    return {id(hook): ModelHook() for hook in offload_hooks(network)}


def check_copyable(network: nn.Module) -> None:
    """Refuses a network with hooks of diffusers: they hold its modules, and a copy would run these, not its own.

    Raises:
        PlanMismatch: it has such hooks, of layerwise casting, group offload or a cache.
    """
    for module in network.modules():
        if hooks := list(getattr(getattr(module, "_diffusers_hook", None), "hooks", ())):
            raise PlanMismatch(
                f"{type(network).__name__} has hooks of diffusers ({hooks[0]}) and cannot be copied; "
                "prune first and enable them on the pruned network, or prune in place with prune_"
            )


@contextlib.contextmanager
def without_offload(pipeline: DiffusionPipeline) -> Iterator[Offload]:
    """Removes the offload hooks of a pipeline for a while; yields a function that offloads another one alike."""
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
    components = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    if device is None or not any(map(is_offloaded, components)):
        return None
    granularity = "model" if getattr(pipeline, "_all_hooks", None) else "sequential"
    return lambda other: getattr(other, f"enable_{granularity}_cpu_offload")(device=device)
