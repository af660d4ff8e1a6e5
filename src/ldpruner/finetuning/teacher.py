"""Where the teacher is while its student trains: on the device, offloaded, or gone, with its outputs cached."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.hooks import apply_group_offloading
from safetensors import SafetensorError
from torch import Tensor, nn

from ldpruner.finetuning.state import read_tensors, write_tensors
from ldpruner.pipelines.offload import is_offloaded, module_device
from ldpruner.pipelines.running import networks

OUTPUTS = "outputs"
OFFLOADING = ("group_offloading", "layer_execution_tracker", "lazy_prefetch")  # hooks of diffusers
TRACES = ("forward", "_diffusers_hook")  # what these leave in a module


class Offloading:
    """Keeps a pipeline's denoisers on the CPU, each block on the device while it runs, until `close`.

    The other networks are on the device until `unload_others`. `close` puts all back where they were. A pipeline that
    is offloaded already stays as it is.
    """

    def __init__(self, teacher: DiffusionPipeline, device: torch.device) -> None:
        parts = list(networks(teacher).values())
        if any(map(is_offloaded, parts)):
            parts = []
        denoisers = [part for part in parts if isinstance(part, ModelMixin) and not hasattr(part, "decode")]
        self._others = [part for part in parts if part not in denoisers]
        self._places, self._hooks = contextlib.ExitStack(), contextlib.ExitStack()
        for part in parts:
            self._places.callback(part.to, module_device(part))
        for part in self._others:
            part.to(device)
        for part in denoisers:
            self._hooks.enter_context(_offloaded_network(part.to("cpu"), device))

    def unload_others(self) -> None:
        """Moves all but the denoisers to the CPU: only these are called in training."""
        for part in self._others:
            part.to("cpu")

    def unload(self) -> None:
        """Leaves everything on the CPU: nothing is called any more."""
        self.unload_others()
        self._hooks.close()

    def close(self) -> None:
        """Puts all networks back where they were."""
        self._hooks.close()
        self._places.close()


@contextlib.contextmanager
def _offloaded_network(network: nn.Module, device: torch.device) -> Iterator[None]:
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
