"""Writes LoRAs for pruned networks, so that other programs can load them."""

import functools
import json
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import safetensors.torch
from diffusers import DiffusionPipeline
from diffusers.configuration_utils import FrozenDict
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from safetensors import SafetensorError
from torch import Tensor

from ldpruner.adapters import (
    Renaming,
    dropped_message,
    lora_renaming,
    module_of,
    peft_format,
    renamed,
    renamed_metadata,
    with_start,
    without_start,
)
from ldpruner.errors import LoraMismatch, StorageError, one_line
from ldpruner.files import replacing
from ldpruner.operators.names import ancestors
from ldpruner.pipelines.running import networks
from ldpruner.pruning.serialization import load_meta
from ldpruner.selection.plan import Plan
from ldpruner.stand_ins import ORIGINAL, new_name

METADATA = "lora_adapter_metadata"  # in the header of a file: a LoraConfig
MOVING = ("blocks", "layers")  # how lists are called whose modules move up; resnets and attentions of U-Nets do not

Weights: TypeAlias = Mapping[str, Tensor]
Metadata: TypeAlias = Mapping[str, Any]

logger = logging.getLogger(__name__)


def adapt_lora(
    lora: Path | str | Weights, pruned: DiffusionPipeline | Plan | Path | str, out: Path | str | None = None
) -> dict[str, Tensor]:
    """Adapts a LoRA of the original model to a pruned one, for programs that do not know what was removed.

    `load_lora_weights` of a pruned pipeline does the same by itself. Weights for removed modules are dropped, and one
    line in the log names them. Weights for blocks that have moved up are renumbered. Those of text encoders stay.

    Args:
        lora: a safetensors file in any format that diffusers reads for the pipeline, or its weights. With a plan, only
            the format that diffusers writes.
        pruned: the pruned pipeline or its folder; or a plan, or its file. A plan does not say which blocks keep a
            stand-in: whole transformer blocks are taken to be gone, as `prune` does where the model allows it.
        out: a file to write.

    Returns:
        The weights, as diffusers names them.

    Raises:
        LoraMismatch: the LoRA cannot be read, or has no weight for the pruned network.
        PipelineNotFound: there is no pruned pipeline.
        StorageError: the file cannot be written.
    """
    if isinstance(pruned, (str, Path)):
        pruned = Plan.read(pruned) if Path(pruned).is_file() else load_meta(pruned)
    weights, metadata = _read(lora) if isinstance(pruned, Plan) else _converted(lora, pruned)
    adapted: dict[str, Tensor] = {}
    renamings = _renamings(pruned, weights)
    for component, renaming in renamings.items():
        start = f"{component}."
        part = peft_format(without_start(weights, start))
        rename = renaming(part)
        adapted |= with_start(renamed(part, rename), start)
        fields = with_start(renamed_metadata(without_start(metadata, start), rename), start)
        weights, metadata = _others(weights, start), {**_others(metadata, start), **fields}
    if not adapted:
        raise LoraMismatch(f"the LoRA has no weight for {' or '.join(renamings)} as pruned; give one of the original")
    adapted.update(weights)
    if out is not None:
        _write(Path(out), adapted, metadata)
    return adapted


def _renamings(pruned: DiffusionPipeline | Plan, weights: Weights) -> dict[str, Callable[[Collection[str]], Renaming]]:
    """For each component that may have a LoRA, what renames the keys of one."""
    if isinstance(pruned, Plan):
        starts = {key.partition(".")[0] for key in weights}
        component = pruned.component or next((name for name in ("unet", "transformer") if name in starts), None)
        if component is None:
            raise LoraMismatch(f"the LoRA names no network, only {sorted(starts)[:3]}; give the pruned pipeline")
        return {component: functools.partial(_planned_renaming, pruned)}
    loaders = {name: part for name, part in networks(pruned).items() if hasattr(part, "load_lora_adapter")}
    return {name: functools.partial(lora_renaming, part) for name, part in loaders.items()}


def _planned_renaming(plan: Plan, keys: Collection[str]) -> Renaming:
    """How a plan renames the keys of a LoRA."""
    removals = [planned.removal for planned in plan.removed]
    whole = [part.operator for part in removals if part.modification == "identity" and not part.cascaded]
    moving = [name for name in whole if name.rpartition(".")[0].endswith(MOVING) and name.rpartition(".")[2].isdigit()]
    gone = {name for removal in removals for name in (removal.operator, *removal.cascaded)}
    kept = {f"{part.operator}.{part.source}" for part in removals if part.modification == "shortcut"}

    def rename(key: str) -> str | None:
        around = ancestors(key)
        return None if not gone.isdisjoint(around) and kept.isdisjoint(around) else new_name(key, moving)

    dropped = [key for key in keys if rename(key) is None]
    if dropped:
        logger.warning("%s", dropped_message(dropped, len(keys)))
    return rename


def _read(lora: Path | str | Weights) -> tuple[Weights, Metadata]:
    """The weights and the LoraConfig of a file."""
    if isinstance(lora, Mapping):
        return lora, {}
    try:
        with safetensors.safe_open(lora, framework="pt") as opened:
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (it is no mapping)
            return weights, json.loads((opened.metadata() or {}).get(METADATA, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise LoraMismatch(f"cannot read {lora}: {one_line(error)}; give a safetensors file") from error


def _converted(lora: Path | str | Weights, pipeline: Any) -> tuple[Weights, Metadata]:
    """The weights and the LoraConfig of a LoRA in any format that a pipeline reads, in that of diffusers."""
    if not hasattr(pipeline, "lora_state_dict"):
        raise LoraMismatch(f"{type(pipeline).__name__} loads no LoRA")
    options: dict[str, Any] = {"return_alphas": True, "return_lora_metadata": True, "use_safetensors": True}
    if isinstance(pipeline, StableDiffusionXLLoraLoaderMixin):  # it counts the blocks of the original
        config = pipeline.unet.config
        options["unet_config"] = FrozenDict({**config, **config.get(ORIGINAL, {})})
    try:
        source = dict(lora) if isinstance(lora, Mapping) else str(lora)
        weights, *alphas, metadata = pipeline.lora_state_dict(source, **options)
    except Exception as error:
        raise LoraMismatch(f"{type(pipeline).__name__} cannot read the LoRA: {one_line(error)}") from error
    return _scaled(weights, alphas[0] or {} if alphas else {}), metadata or {}


def _scaled(weights: Weights, alphas: Mapping[str, float]) -> dict[str, Tensor]:
    """The weights of a LoRA with alpha / rank multiplied in, as the format of diffusers has no alphas."""
    module = {key: _module(key) for key in weights}
    rank = {module[key]: len(weights[key]) for key in weights if ".down." in key or ".lora_A." in key}
    scale = {name: alpha / rank[name] for key, alpha in alphas.items() if (name := _module(key)) in rank}
    outputs = [key for key in weights if ".up." in key or ".lora_B." in key]
    return {**weights, **{key: weights[key] * scale.get(module[key], 1.0) for key in outputs}}


def _module(key: str) -> str:
    """The module that a weight of a LoRA, or an alpha, belongs to."""
    return module_of(next(iter(convert_unet_state_dict_to_peft({key: None})))).removesuffix(".alpha")


def _others(entries: Mapping[str, Any], start: str) -> dict[str, Any]:
    """The entries whose names do not have a start."""
    return {key: value for key, value in entries.items() if not key.startswith(start)}


def _write(path: Path, weights: Weights, metadata: Metadata) -> None:
    header = {"format": "pt", **({METADATA: json.dumps(metadata, sort_keys=True)} if metadata else {})}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
            safetensors.torch.save_file(tensors, partial, metadata=header)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot write {path}: {one_line(error)}") from error
