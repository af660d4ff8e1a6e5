"""Pipelines without weights: built from their configuration files, run with every network on the meta device.

The networks compute shapes only; the scheduler and everything else of the pipeline run as they always do. A pipeline
that reads a value back from a network reads zero.
"""

import contextlib
import importlib
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import tokenizers
import torch
import transformers
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ldpruner.errors import PipelineNotFound
from ldpruner.pipelines.offload import is_offloaded
from ldpruner.runtime import pruned_class

VOCABULARIES = ("vocab.json", "tokenizer.json", "spiece.model")
SAFETY_CHECKER = "SafetyChecker"  # runs after the last step
PREPROCESSORS = ("ImageProcessor", "FeatureExtractor")  # perhaps followed by Fast or Pil
# where diffusers has the components of single pipelines, and has put those of old ones
PLACES = ("diffusers.pipelines.{}", "diffusers.pipelines.deprecated.{}")
TEXT_LENGTH = 77  # tokens, of CLIP, where a configuration does not say
LONGEST_TEXT = 512  # tokens; some tokenizers name no limit


def open_meta(folder: Path) -> DiffusionPipeline:
    """Builds the pipeline of a folder that holds only configuration files, its networks on the meta device.

    Raises:
        PipelineNotFound: a class or a configuration cannot be had.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    pipeline_class = getattr(diffusers, str(index["_class_name"]), None)
    if pipeline_class is None:
        raise PipelineNotFound(f"diffusers {diffusers.__version__} has no pipeline class {index['_class_name']!r}")
    accepted = inspect.signature(pipeline_class.__init__).parameters
    parts: dict[str, Any] = {}
    for name, entry in index.items():
        if name not in accepted:
            continue
        is_component = isinstance(entry, list) and len(entry) == 2
        parts[name] = _component(folder / name, *entry) if is_component else entry
    missing = {name: None for name, value in accepted.items() if _required(value) and name not in parts}
    parts["requires_safety_checker"] = False
    pipeline = pipeline_class(**{name: part for name, part in parts.items() if name in accepted}, **missing)
    assert isinstance(pipeline, DiffusionPipeline)
    return pipeline


def _required(parameter: inspect.Parameter) -> bool:
    empty = parameter.default is inspect.Parameter.empty
    return empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.name != "self"


def _component(folder: Path, library: str | None, class_name: str | None) -> Any:
    """One component, as far as its configuration goes; None for what is not needed to watch a call."""
    if library is None or class_name is None or class_name.endswith(SAFETY_CHECKER):
        return None
    part = _component_class(library, class_name)
    if part is None:
        return None
    if issubclass(part, nn.Module):
        return _meta_network(part, folder)
    if "Tokenizer" in class_name:
        return _tokenizer(part, folder)
    if any(kind in class_name for kind in PREPROCESSORS):
        return _preprocessor(part, folder)
    return part.from_config(part.load_config(folder)) if issubclass(part, ConfigMixin) else None


def _component_class(library: str, class_name: str) -> Any:
    if library.startswith("pruned"):
        return pruned_class(getattr(diffusers, class_name.removeprefix("Pruned")))
    module = diffusers if library == "diffusers" else importlib.import_module(_trusted(library))
    return getattr(module, class_name, None)


def _trusted(library: str) -> str:
    if library == "transformers":
        return library
    found = next((name for name in PLACES if _exists(name.format(library))), None)
    if found is None:
        raise PipelineNotFound(
            f"component library {library!r} is neither diffusers nor transformers; it is not imported"
        )
    return found.format(library)


def moved_class(library: str, class_name: str) -> Any:
    """The class of a component that diffusers keeps elsewhere than it did when the folder was written, or None."""
    here, there = (place.format(library) for place in PLACES)
    is_moved = library.isidentifier() and not _exists(here) and _exists(there)
    return getattr(importlib.import_module(there), class_name, None) if is_moved else None


def _exists(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _meta_network(network_class: Any, folder: Path) -> nn.Module:
    is_diffusers = issubclass(network_class, ModelMixin)
    configuration = None if is_diffusers else network_class.config_class.from_pretrained(folder)
    with torch.device("meta"):
        if is_diffusers:
            network = network_class.from_config(network_class.load_config(folder))
        else:
            network = network_class(configuration)
    assert isinstance(network, nn.Module)
    return network.eval()


def _tokenizer(tokenizer: Any, folder: Path) -> Any:
    if any((folder / name).exists() for name in VOCABULARIES):
        return tokenizer.from_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    known = json.loads(settings.read_text(encoding="utf-8")) if settings.exists() else {}
    length = min(int(known.get("model_max_length", TEXT_LENGTH)), LONGEST_TEXT)
    return _placeholder_tokenizer(tokenizer, length)


def _placeholder_tokenizer(tokenizer: Any, length: int) -> Any:
    """Token ids of the right shape, where a folder has no vocabulary: each text is one word and an end.

    Pipelines ask for a tokenizer's class, so it keeps its class where that leaves the work to `tokenizers`.
    """
    fast = transformers.PreTrainedTokenizerFast
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    words.post_processor = tokenizers.processors.TemplateProcessing(single="$A <pad>", special_tokens=[("<pad>", 0)])
    if issubclass(tokenizer, fast):
        fast = type(tokenizer.__name__, (tokenizer,), {"__init__": fast.__init__})
    return fast(tokenizer_object=words, pad_token="<pad>", model_max_length=length)


def _preprocessor(preprocessor: Any, folder: Path) -> Any:
    """What turns images or sounds into tensors; None without its configuration, or a library that it needs."""
    try:
        return preprocessor.from_pretrained(folder) if (folder / "preprocessor_config.json").exists() else None
    except ImportError:
        return None


def is_meta(pipeline: DiffusionPipeline) -> bool:
    """Whether a network of the pipeline has its weights on the meta device."""
    return any(_on_meta(part) for part in pipeline.components.values())


def _on_meta(part: Any) -> bool:
    is_meta = isinstance(part, nn.Module) and any(weight.is_meta for weight in part.parameters())
    return is_meta and not is_offloaded(part)


@contextlib.contextmanager
def running_on_meta(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Lets a pipeline run whose networks are on the meta device.

    The pipeline believes to be on the CPU; what goes into a network becomes meta, what comes out zeros.
    """
    handles = []
    for part in pipeline.components.values():
        if _on_meta(part):
            handles.append(part.register_forward_pre_hook(_to_meta, with_kwargs=True))
            handles.append(part.register_forward_hook(_to_zeros))
    original = type(pipeline)
    on_cpu = property(lambda _: torch.device("cpu"))
    pipeline.__class__ = type(original.__name__, (original,), {"device": on_cpu, "_execution_device": on_cpu})
    try:
        with shapes_only():
            yield
    finally:
        pipeline.__class__ = original
        for handle in handles:
            handle.remove()


def to_meta(values: Any) -> Any:
    """The same nest of values, its tensors on the meta device."""
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), values)


def _to_meta(_: nn.Module, arguments: Any, options: Any) -> Any:
    return to_meta(arguments), to_meta(options)


def _to_zeros(_: nn.Module, __: Any, outputs: Any) -> Any:
    return tree_map_only(
        torch.Tensor,
        lambda tensor: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape),
        outputs,
    )


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Lets networks run on the meta device, those too that name the device of their precision or read values back."""
    original = torch.autocast
    setattr(torch, "autocast", _Autocast)  # noqa: B010  (a class, to mypy)
    try:
        with _ShapesOnly():
            yield
    finally:
        setattr(torch, "autocast", original)  # noqa: B010


class _Autocast(torch.autocast):
    """Does nothing on the meta device, where torch's own raises."""

    def __init__(self, device_type: str, *arguments: Any, **options: Any) -> None:
        if device_type == "meta":
            device_type, options["enabled"] = "cpu", False
        super().__init__(device_type, *arguments, **options)


# What is asked of values that are not there. Of a mask, all is taken.
_ANSWERS: dict[Any, Callable[[torch.Tensor], Any]] = {
    torch.ops.aten._local_scalar_dense.default: lambda asked: torch.zeros((), dtype=asked.dtype).item(),
    torch.ops.aten.nonzero.default: lambda asked: asked.new_empty((asked.numel(), asked.ndim), dtype=torch.int64),
}


class _ShapesOnly(TorchDispatchMode):
    """Lets tensors of both devices meet, for what does not go through a network's own call, such as `vae.encode`.

    What is computed with a meta tensor is meta; what is read from it or copied off it is zero.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        on_meta = [leaf.is_meta for leaf in tree_leaves((args, options)) if isinstance(leaf, torch.Tensor)]
        if not any(on_meta):
            return function(*args, **options)
        if function in _ANSWERS:
            return _ANSWERS[function](args[0])
        if function is torch.ops.aten._to_copy.default and options.get("device") not in (None, torch.device("meta")):
            return torch.zeros_like(args[0], dtype=options.get("dtype"), device=options["device"])
        if all(on_meta):
            return function(*args, **options)
        if function._schema.is_mutable and not args[0].is_meta:
            return args[0]
        return function(*to_meta(args), **to_meta(options))
