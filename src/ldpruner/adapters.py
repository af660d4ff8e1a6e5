"""What pruned networks do about LoRAs, IP-Adapters, caches and fused projections, which go by names and positions.

This file becomes part of the code in the folder of every saved pruned pipeline: see `runtime`.
"""

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from torch import nn

from ldpruner.stand_ins import ORIGINAL, REMOVED, Identity, StandIn, Zero, module_at, new_name, old_name

FETCH_OPTIONS = (
    *("weight_name", "use_safetensors", "local_files_only", "cache_dir", "force_download", "proxies", "token"),
    *("revision", "subfolder"),
)
PATTERNS = ("rank_pattern", "alpha_pattern")  # of a LoraConfig, by module
PROJECTIONS = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
SHOWN = 3  # names in a message

logger = logging.getLogger(__name__)

Renaming = Callable[[str], str | None]


def adapting_methods(base: Any) -> dict[str, Any]:
    """The methods here that take the place of those of a diffusers model class."""
    methods = {
        "load_lora_adapter": load_lora_adapter,
        "_load_ip_adapter_weights": load_ip_adapter_weights,
        "_load_ip_adapter_loras": load_ip_adapter_loras,
        "fuse_qkv_projections": fuse_qkv_projections,
        "enable_cache": enable_cache,
    }
    return {name: method for name, method in methods.items() if hasattr(base, name)}


# LoRA


def load_lora_adapter(
    self: Any,
    pretrained_model_name_or_path_or_dict: Any,
    prefix: str | None = "transformer",
    hotswap: bool = False,
    **options: Any,
) -> None:
    """Loads a LoRA that was trained for the original network, or for this one, with the arguments of diffusers.

    What targets removed modules is dropped, and one line in the log names it. What targets blocks that moved up is
    renumbered.

    Raises:
        ValueError: a Control LoRA, which sets weights of blocks by number, and blocks moved up.
    """
    if getattr(self, "_overwritten_params", None) and self.config.get(REMOVED):
        raise ValueError("a Control LoRA goes by the numbers of the original's blocks; fuse it, and prune after that")
    fetched, metadata = _fetched(pretrained_model_name_or_path_or_dict, options)
    start = f"{prefix}." if prefix is not None else ""
    weights = peft_format(without_start(fetched, start))
    rename = lora_renaming(self, weights)
    noted = {
        "metadata": renamed_metadata(without_start(metadata or {}, start), rename),
        "network_alphas": renamed(without_start(options.pop("network_alphas", None) or {}, start), rename),
    }
    options |= {name: with_start(entries, start) for name, entries in noted.items() if entries}
    adapted = with_start(renamed(weights, rename), start)
    self.unpruned_class.load_lora_adapter(self, adapted, prefix=prefix, hotswap=hotswap, **options)


def _fetched(lora: Any, options: dict[str, Any]) -> tuple[Mapping[str, torch.Tensor], Mapping[str, Any] | None]:
    """The weights and the metadata of a LoRA, and takes the options that say where they are."""
    metadata = options.pop("metadata", None)
    if isinstance(lora, dict):
        return lora, metadata
    from diffusers.loaders.lora_base import _fetch_state_dict

    places = {name: options.pop(name, None) for name in FETCH_OPTIONS}
    agent = {"file_type": "attn_procs_weights", "framework": "pytorch"}
    weights, metadata = _fetch_state_dict(
        lora,
        user_agent=agent,
        allow_pickle=False,
        metadata=metadata,
        **{**places, "force_download": bool(places["force_download"])},
    )
    return weights, metadata


def without_start(entries: Mapping[str, Any], start: str) -> dict[str, Any]:
    """The entries whose names have a start, without it."""
    return {key.removeprefix(start): value for key, value in entries.items() if key.startswith(start)}


def with_start(entries: Mapping[str, Any], start: str) -> dict[str, Any]:
    """Entries with a start before their names."""
    return {f"{start}{key}": value for key, value in entries.items()}


def peft_format(weights: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """The weights of a LoRA under the names that PEFT gives them."""
    is_other = any(".lokr_" in key for key in weights) or "lora_controlnet" in weights
    if is_other or not weights or "lora_A" in next(iter(weights)):
        return weights
    converted: dict[str, torch.Tensor] = convert_unet_state_dict_to_peft(weights)
    return converted


def lora_renaming(network: Any, keys: Collection[str]) -> Renaming:
    """How the keys of a LoRA are called in a pruned network, as a function; None for those of removed modules.

    A LoRA is taken for the pruned network's own if the network has all modules that it targets, and if it targets all
    or none of the blocks of each list that became shorter. Others are taken for the original's.
    """
    removed = network.config.get(REMOVED, ())
    shortened = {path for name in removed if (path := name.rpartition(".")[0]) and name.rpartition(".")[2].isdigit()}
    is_own = _is_own(network, {module_of(key) for key in keys}, shortened, removed)

    def rename(key: str) -> str | None:
        name = key if is_own else new_name(key, removed)
        return None if name is None or isinstance(module_at(network, name), StandIn) else name

    dropped = [key for key in keys if rename(key) is None]
    if dropped:
        logger.warning("%s", dropped_message(dropped, len(keys)))
    elif shortened:
        logger.info("the LoRA is taken for one of the %s network", "pruned" if is_own else "original")
    return rename


def dropped_message(dropped: Collection[str], count: int) -> str:
    """One line about keys of a LoRA that have no module."""
    names = sorted({module_of(key) for key in dropped})
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (
        f"the LoRA is of the original network: {len(dropped)} of its {count} weights are dropped, "
        f"as {len(names)} of their modules are removed: {', '.join(names[:SHOWN])}{more}"
    )


def module_of(key: str) -> str:
    """The module that a weight of a LoRA belongs to."""
    return key.split(".lora_")[0].split(".lokr_")[0]


def _is_own(network: Any, modules: Collection[str], shortened: Iterable[str], removed: Collection[str]) -> bool:
    """Whether a LoRA with weights for some modules was trained for this network, and not for the original."""
    if any(isinstance(module_at(network, name), StandIn | None) for name in modules):
        return False
    for path in filter(None, (new_name(path, removed) for path in shortened)):
        items = network.get_submodule(path).named_children()
        blocks = {f"{path}.{name}" for name, block in items if not _is_empty(block)}
        targeted = {block for block in blocks if any(name.startswith(f"{block}.") for name in modules)}
        if targeted and targeted != blocks:
            return False
    return True


def _is_empty(block: nn.Module) -> bool:
    """Whether a block is a stand-in that passes its inputs on."""
    return isinstance(block, Identity) and not isinstance(block, Zero)


def renamed(entries: Mapping[str, Any], rename: Renaming) -> dict[str, Any]:
    """Entries under new names, without those that have none."""
    return {name: value for key, value in entries.items() if (name := rename(key)) is not None}


def renamed_metadata(metadata: Mapping[str, Any], rename: Renaming) -> dict[str, Any]:
    """The fields of a LoraConfig, with new names of modules."""

    def rename_pattern(pattern: str) -> str | None:
        name = rename(pattern.removeprefix("^"))  # names from the start, otherwise from any dot
        return name and pattern[: pattern.startswith("^")] + name

    fields = {name: renamed(metadata[name], rename_pattern) for name in PATTERNS if metadata.get(name)}
    targets = metadata.get("target_modules")
    if isinstance(targets, (list, tuple, set)):
        return {**metadata, **fields, "target_modules": list(renamed(dict.fromkeys(targets), rename))}
    return {**metadata, **fields}


# IP-Adapter


def load_ip_adapter_weights(self: Any, state_dicts: Any, *args: Any, **options: Any) -> Any:
    """Loads IP-Adapters of the original network: each layer's weights into the same layer."""
    return self.unpruned_class._load_ip_adapter_weights(self, _renumbered(self, state_dicts), *args, **options)


def load_ip_adapter_loras(self: Any, state_dicts: Any) -> Any:
    """The LoRAs inside IP-Adapters of the original network, by names."""
    return self.unpruned_class._load_ip_adapter_loras(self, _renumbered(self, state_dicts))


def _renumbered(network: Any, state_dicts: Any) -> Any:
    """IP-Adapters with the numbers of the attentions that are left.

    Their keys start with a number. LoRAs count all attentions. The rest counts attentions that may attend to images:
    cross-attentions of U-Nets, with every odd number, and joint attentions of transformers.
    """
    if isinstance(state_dicts, list):
        return [_renumbered(network, state_dict) for state_dict in state_dicts]
    removed = network.config.get(REMOVED, ())
    original, left = _original_attentions(network), [old_name(name, removed) for name in network.attn_processors]
    first, step = (1, 2) if hasattr(network, "load_attn_procs") else (0, 1)
    numbers = {}
    for kind, is_counted, start, gap in (("lora", lambda _: True, 0, 1), ("ip", _attends_to_images, first, step)):
        places = {name: place for place, name in enumerate(filter(is_counted, left))}
        numbers[kind] = {
            str(start + gap * place): str(start + gap * places[name])
            for place, name in enumerate(filter(is_counted, original))
            if name in places
        }

    def rename(key: str) -> str | None:
        number, _, rest = key.partition(".")
        new = numbers["lora" if "_lora." in rest else "ip"].get(number)
        return new and f"{new}.{rest}"

    return {**state_dicts, "ip_adapter": renamed(state_dicts["ip_adapter"], rename)}


def _attends_to_images(name: str) -> bool:
    is_self = name.endswith("attn1.processor") or name.startswith("single_transformer_blocks")
    return not is_self and "motion_modules" not in name


def _original_attentions(network: Any) -> list[str]:
    """The names of the original network's attention processors, in their order."""
    config = {**network.config, **network.config.get(ORIGINAL, {})}
    if config.get(REMOVED) and ORIGINAL not in config:
        raise ValueError("the configuration does not say which attentions the original has; prune again")
    fields = {name: value for name, value in config.items() if name not in ("removals", "auto_map")}
    with torch.device("meta"):
        return list(network.unpruned_class.from_config(fields).attn_processors)


# Projections and caches


def fuse_qkv_projections(self: Any) -> None:
    """Fuses the projections of attentions that still have them all; the others stay as they are."""
    incomplete = [
        module
        for module in self.modules()
        if any(isinstance(module._modules.get(name), StandIn) for name in PROJECTIONS)
        and hasattr(module, "fuse_projections")
    ]
    processors = [attention.processor for attention in incomplete]
    for attention in incomplete:
        attention.fuse_projections = lambda fuse=True: None
    try:
        self.unpruned_class.fuse_qkv_projections(self)
    finally:
        for attention, processor in zip(incomplete, processors, strict=True):
            del attention.fuse_projections
            attention.set_processor(processor)


def enable_cache(self: Any, config: Any) -> None:
    """Enables a cache of diffusers, which sees only the blocks that are left."""
    with _only_blocks(self):
        self.unpruned_class.enable_cache(self, config)


@contextlib.contextmanager
def _only_blocks(network: nn.Module) -> Iterator[None]:
    """Takes the stand-ins of whole blocks out of the lists of a network inside a context."""
    lists = {name: child for name, child in network.named_children() if isinstance(child, nn.ModuleList)}
    for name, blocks in lists.items():
        network._modules[name] = nn.ModuleList(block for block in blocks if not _is_empty(block))
    try:
        yield
    finally:
        network._modules.update(lists)
