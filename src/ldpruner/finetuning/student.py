"""The pruned network while it is trained: in full precision, with a LoRA, or shared among processes."""

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ldpruner.errors import FinetuningError, one_line
from ldpruner.finetuning.lora import add_lora_, merge_lora_, own_weights_, save_lora, share_weights_
from ldpruner.finetuning.settings import RANK, Training
from ldpruner.finetuning.sharding import gather_, sharded_copy, wants_sharding
from ldpruner.finetuning.state import full_precision_
from ldpruner.pipelines.fingerprints import module_dtype
from ldpruner.pipelines.offload import module_device
from ldpruner.runtime import cast_


class Student:
    """A pruned network in training.

    Attributes:
        network: the network itself; `finish` brings it back to its device and precision.
        trained: what is trained: the network, or a copy of it that is shared among the processes.
        weak_model: the network as it is before this training, for autoguidance; else None.
    """

    def __init__(self, network: Any, training: Training, accelerator: Accelerator) -> None:
        shards = wants_sharding()
        self.training = training
        self._placement = module_device(network), module_dtype(network)
        self.network = network.to("cpu" if shards else accelerator.device).eval()
        self.weak_model: nn.Module | None = None
        if training.autoguidance_scale:
            self.weak_model = copy.deepcopy(network).to(accelerator.device).requires_grad_(False)
        if training.adapter == "lora":
            add_lora_(self.network, training.rank or RANK, training.seed)
        if training.gradient_checkpointing:
            try:
                self.network.enable_gradient_checkpointing()
            except ValueError as error:
                raise FinetuningError(f"gradient_checkpointing=True: {one_line(error)}; leave it out") from error
        full_precision_(network)
        self.trained = sharded_copy(network, accelerator) if shards else network

    @property
    def is_shared(self) -> bool:
        """Whether several processes hold parts of it."""
        return self.trained is not self.network

    def share_with(self, teacher: nn.Module) -> None:
        """Uses the storage of the teacher's weights for frozen ones that are the same."""
        if not self.is_shared:
            share_weights_(self.network, teacher)

    def gather(self) -> None:
        """Brings the parts of all processes into the network."""
        if self.is_shared:
            gather_(self.network, self.trained)

    @contextlib.contextmanager
    def in_its_precision(self) -> Iterator[None]:
        """The network has the precision of its pipeline inside the context; the weights in training do not change."""
        trained = [(weight, weight.data) for weight in (*self.network.parameters(), *self.network.buffers())]
        cast_(self.network, self._placement[1])
        try:
            yield
        finally:
            for weight, data in trained:
                weight.data = data

    @torch.no_grad()
    def finish(self, teacher: nn.Module) -> None:
        """Brings the network back to its device and its precision, and merges its LoRA."""
        self.gather()
        if self.training.gradient_checkpointing:
            self.network.disable_gradient_checkpointing()
        device, dtype = self._placement
        own_weights_(self.network.to(device), teacher)
        if self.training.adapter and self.training.merge_adapter:
            merge_lora_(self.network)
        cast_(self.network, dtype)

    def write_adapter(self, component: str, folder: Path) -> None:
        """Writes the adapter that `finish` left in the network, and merges it."""
        if self.training.adapter and not self.training.merge_adapter:
            save_lora(self.network, component, folder)
            merge_lora_(self.network)
