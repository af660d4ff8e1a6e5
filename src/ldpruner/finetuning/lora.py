"""Low-rank recovery through PEFT: only a LoRA on the kept weights is trained."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldpruner.errors import FinetuningError
from ldpruner.finetuning.losses import names_in
from ldpruner.finetuning.state import write_tensors

NAME = "recovery"  # of the adapter
FILE = "pytorch_lora_weights.safetensors"  # as diffusers names it
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def add_lora_(network: Any, rank: int, seed: int) -> None:
    """Freezes a network and adds a LoRA to its linear and convolutional layers; its output stays the same.

    Args:
        network: the denoiser.
        rank: of each update; the scale is 1.
        seed: of the random factor of each update.

    Raises:
        FinetuningError: PEFT is not installed, or the network already has an adapter.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise FinetuningError("adapter='lora' needs PEFT; install it with: pip install 'ld-pruner[lora]'") from error
    if getattr(network, "peft_config", None):
        name = next(iter(network.peft_config))
        raise FinetuningError(
            f"{type(network).__name__} already has the adapter {name!r}; fuse or delete it, "
            "or leave out adapter='lora' to train it"
        )
    names = [
        name
        for name, module in network.named_modules()
        if isinstance(module, LAYERS) and getattr(module, "groups", 1) == 1
    ]
    network.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), network, NAME)
    network._hf_peft_config_loaded = True  # so that diffusers saves, fuses and unloads it


def merge_lora_(network: Any) -> None:
    """Merges the adapter that `add_lora_` added into the weights, and removes it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(network.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            network.set_submodule(name, module.get_base_layer())
    del network.peft_config, network._hf_peft_config_loaded


def share_weights_(student: nn.Module, teacher: nn.Module) -> int:
    """Lets a network use the storage of its teacher's weights for frozen ones that are the same.

    Returns:
        the bytes that are saved.
    """
    own = dict(teacher.named_parameters())
    weights = {new: own[name] for name, new in names_in(student, teacher, own).items()}
    shared = 0
    for name, weight in student.named_parameters():
        other = weights.get(name.replace(".base_layer.", "."))
        if other is not None and not weight.requires_grad and _is_same(weight, other):
            weight.data = other.data
            shared += weight.nbytes
    return shared


def own_weights_(student: nn.Module, teacher: nn.Module) -> None:
    """Undoes `share_weights_`: the network has storage of its own again."""
    storages = {weight.untyped_storage().data_ptr() for weight in teacher.parameters()}
    for weight in student.parameters():
        if weight.untyped_storage().data_ptr() in storages:
            weight.data = weight.data.clone()


def save_lora(network: nn.Module, component: str, folder: Path) -> None:
    """Writes the adapter of a network as diffusers does, for `load_lora_weights` of the pruned pipeline.

    Raises:
        StorageError: the file cannot be written.
    """
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(network, adapter_name=NAME)
    write_tensors(folder / FILE, {f"{component}.{name}": weight for name, weight in weights.items()})


def _is_same(weight: torch.Tensor, other: torch.Tensor) -> bool:
    placed = (weight.device, weight.dtype, weight.shape) == (other.device, other.dtype, other.shape)
    return placed and type(weight.data) is type(other.data) is torch.Tensor and torch.equal(weight, other)
