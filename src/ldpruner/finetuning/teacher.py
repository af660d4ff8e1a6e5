"""Where the teacher is while its student trains: on the device, offloaded, or gone, with its outputs cached."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers.hooks import apply_group_offloading
from safetensors import SafetensorError
from torch import Tensor, nn

from ldpruner.finetuning.state import read_tensors, write_tensors

OUTPUTS = "outputs"
OFFLOADING = ("group_offloading", "layer_execution_tracker", "lazy_prefetch")  # hooks of diffusers
TRACES = ("forward", "_diffusers_hook")  # what these leave in a module


@contextlib.contextmanager
def offloaded(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Keeps the weights of a network on the CPU inside the context; each block is on the device while it runs."""
    before = [
        (module, {name: vars(module)[name] for name in TRACES if name in vars(module)}) for module in network.modules()
    ]
    apply_group_offloading(
        network,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
    )
    try:
        yield
    finally:
        for module, values in before:
            registry: Any = getattr(module, "_diffusers_hook", None)
            for name in [name for name in getattr(registry, "hooks", ()) if name.startswith(OFFLOADING)]:
                registry.remove_hook(name, recurse=False)
            for name in TRACES:
                vars(module).pop(name, None)
            vars(module).update(values)


class OutputCache:
    """The teacher's outputs by batch, in files of a folder, or in memory without one."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._outputs: dict[str, Tensor] = {}

    def get(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        """The outputs of a batch; made and kept where they are missing or damaged."""
        if self.folder is None:
            if key not in self._outputs:
                self._outputs[key] = make()
            return self._outputs[key]
        path = self.folder / f"{key}.safetensors"
        try:
            return read_tensors(path)[0][OUTPUTS]
        except (OSError, SafetensorError, KeyError, ValueError):
            outputs = make()
            write_tensors(path, {OUTPUTS: outputs})
            return outputs

    def clear(self) -> None:
        """Deletes all outputs."""
        self._outputs.clear()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
