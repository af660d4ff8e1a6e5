"""Pipelines without weights: built from their configuration files, with every network on the meta device.

The networks compute shapes only. The scheduler and everything else of the pipeline run as usual. A pipeline that reads
a value from a network's output reads zero.
"""

import contextlib
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import tokenizers
import torch
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin, SchedulerMixin
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ldpruner.errors import PipelineNotFound
from ldpruner.pipelines.index import index_components, pipeline_class, read_index
from ldpruner.pipelines.library_logs import without_chatter
from ldpruner.pipelines.offload import is_offloaded
from ldpruner.pipelines.patches import patched
from ldpruner.runtime import pruned_class

VOCABULARIES = ("vocab.json", "tokenizer.json", "spiece.model")
SAFETY_CHECKER = "SafetyChecker"  # runs after the last step
PREPROCESSORS = ("ImageProcessor", "FeatureExtractor")  # may be followed by Fast or Pil
# Modules of components that only one pipeline uses; diffusers moves those of old pipelines to the second place.
COMPONENT_MODULES = ("diffusers.pipelines.{}", "diffusers.pipelines.deprecated.{}")
CLIP_TOKENS = 77  # the text length of CLIP, where a configuration names none
MAX_TOKENS = 512  # some tokenizers have no limit


def open_meta(folder: Path) -> DiffusionPipeline:
    """Builds the pipeline of a folder from its configuration files, with its networks on the meta device.

    Raises:
        PipelineNotFound: a class or a configuration is missing.
    """
    with without_chatter():
        build = pipeline_class(folder)
        accepted = inspect.signature(build.__init__).parameters
        components = {name: meta_component(folder / name, *entry) for name, entry in index_components(folder).items()}
        index = {name: value for name, value in read_index(folder).items() if value != [None, None]}
        settings = {name: value for name, value in index.items() if name in accepted}
        absent = {name: None for name, parameter in accepted.items() if _is_required(parameter)}
        if "requires_safety_checker" in accepted:
            settings["requires_safety_checker"] = False
        pipeline = build(**{**absent, **settings, **components})
    assert isinstance(pipeline, DiffusionPipeline)
    return pipeline


def _is_required(parameter: inspect.Parameter) -> bool:
    has_default = parameter.default is not inspect.Parameter.empty
    return not has_default and parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.name != "self"


def meta_component(folder: Path, library: str, class_name: str) -> Any:
    """One component built from its configuration; None where the denoising loop does without it."""
    if class_name.endswith(SAFETY_CHECKER):
        return None
    component_class = special_class(library, class_name) or _library_class(library, class_name)
    if component_class is None:
        return None
    if issubclass(component_class, (nn.Module, SchedulerMixin)) and not folder.is_dir():
        raise PipelineNotFound(f"{folder} is missing: it would hold the component {folder.name} ({class_name})")
    if issubclass(component_class, nn.Module):
        return _meta_network(component_class, folder)
    if "Tokenizer" in class_name:
        return _tokenizer(component_class, folder)
    if any(name in class_name for name in PREPROCESSORS):
        return _preprocessor(component_class, folder)
    is_configured = issubclass(component_class, ConfigMixin)
    return component_class.from_config(component_class.load_config(folder)) if is_configured else None


def special_class(library: str, class_name: str) -> Any:
    """The class of a component that diffusers cannot load by its entry: pruned, or moved since. None for others."""
    if library.startswith("pruned"):
        return pruned_class(_diffusers_class(class_name.removeprefix("Pruned")))
    here, deprecated = (module.format(library) for module in COMPONENT_MODULES)
    is_moved = library.isidentifier() and not _exists(here) and _exists(deprecated)
    return getattr(importlib.import_module(deprecated), class_name, None) if is_moved else None


def _diffusers_class(name: str) -> Any:
    """A network class of diffusers, or of one pipeline alone, whose module is loaded with the pipeline's."""
    network: Any = getattr(diffusers, name, None)
    if network is None:
        modules = [module for path, module in sys.modules.items() if path.startswith("diffusers.pipelines.")]
        network = next((vars(module)[name] for module in modules if name in vars(module)), None)
    if not (inspect.isclass(network) and issubclass(network, ModelMixin)):
        raise PipelineNotFound(f"diffusers {diffusers.__version__} has no network class {name!r}")
    return network


def _library_class(library: str, class_name: str) -> Any:
    module = library
    if library not in ("diffusers", "transformers"):
        module = COMPONENT_MODULES[0].format(library)
        if not _exists(module):
            raise PipelineNotFound(
                f"component library {library!r} is neither diffusers nor transformers; it is not imported"
            )
    return getattr(importlib.import_module(module), class_name, None)


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


def _tokenizer(tokenizer_class: Any, folder: Path) -> Any:
    if any((folder / name).exists() for name in VOCABULARIES):
        return tokenizer_class.from_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return _placeholder_tokenizer(tokenizer_class, min(int(settings.get("model_max_length", CLIP_TOKENS)), MAX_TOKENS))


def _placeholder_tokenizer(tokenizer_class: Any, length: int) -> Any:
    """Stands in for a tokenizer without a vocabulary: each text becomes one word and an end token.

    It keeps the tokenizer's class where that class leaves the work to `tokenizers`, because pipelines check it.
    """
    from transformers import PreTrainedTokenizerFast  # here, as it takes a second

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    words.post_processor = tokenizers.processors.TemplateProcessing(single="$A <pad>", special_tokens=[("<pad>", 0)])
    placeholder: Any = PreTrainedTokenizerFast
    if issubclass(tokenizer_class, PreTrainedTokenizerFast):
        init = PreTrainedTokenizerFast.__init__
        placeholder = type(tokenizer_class.__name__, (tokenizer_class,), {"__init__": init})
    return placeholder(tokenizer_object=words, pad_token="<pad>", model_max_length=length)


def _preprocessor(preprocessor_class: Any, folder: Path) -> Any:
    """An image or sound preprocessor; None without its configuration, or without a library that it needs."""
    try:
        has_configuration = (folder / "preprocessor_config.json").exists()
        return preprocessor_class.from_pretrained(folder) if has_configuration else None
    except ImportError:
        return None


def is_meta(pipeline: DiffusionPipeline) -> bool:
    """Whether a network of the pipeline has its weights on the meta device."""
    return any(_is_on_meta(part) for part in pipeline.components.values())


def _is_on_meta(component: Any) -> bool:
    if not isinstance(component, nn.Module) or is_offloaded(component):
        return False
    return any(weight.is_meta for weight in component.parameters())


@contextlib.contextmanager
def running_on_meta(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Lets a pipeline run whose networks are on the meta device.

    The pipeline sees the CPU as its device. Inputs of a network become meta tensors, its outputs become zeros.
    """
    cpu = torch.device("cpu")
    with contextlib.ExitStack() as stack:
        for network in filter(_is_on_meta, pipeline.components.values()):
            stack.callback(network.register_forward_pre_hook(_to_meta, with_kwargs=True).remove)
            stack.callback(network.register_forward_hook(_to_zeros).remove)
        stack.enter_context(patched(pipeline, device=cpu, _execution_device=cpu))
        stack.enter_context(shapes_only())
        yield


def to_meta(values: Any) -> Any:
    """The same nest of values, its tensors on the meta device."""
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), values)


def _to_meta(_: nn.Module, args: Any, kwargs: Any) -> Any:
    return to_meta(args), to_meta(kwargs)


def _to_zeros(_: nn.Module, __: Any, outputs: Any) -> Any:
    return tree_map_only(
        torch.Tensor, lambda tensor: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape), outputs
    )


@contextlib.contextmanager
def shapes_only(*, masks: bool = True) -> Iterator[None]:
    """Lets networks run on the meta device, even if they read values back or use autocast on their device.

    With `masks`, a mask selects everything; otherwise an error says that the network needs values.
    """
    original = torch.autocast
    setattr(torch, "autocast", _Autocast)  # noqa: B010  (a class, to mypy)
    try:
        with _ShapesOnly(masks):
            yield
    finally:
        setattr(torch, "autocast", original)  # noqa: B010


class _Autocast(torch.autocast):
    """Does nothing on the meta device, where torch's own raises."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        if device_type == "meta":
            device_type, kwargs["enabled"] = "cpu", False
        super().__init__(device_type, *args, **kwargs)


_NONZERO = torch.ops.aten.nonzero.default
# The results of operations that need values. A mask selects everything.
_PLACEHOLDERS: dict[Any, Callable[[torch.Tensor], Any]] = {
    torch.ops.aten._local_scalar_dense.default: lambda tensor: torch.zeros((), dtype=tensor.dtype).item(),
    _NONZERO: lambda mask: mask.new_empty((mask.numel(), mask.ndim), dtype=torch.int64),
}
_INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


def _without_masks(indices: Any) -> list[torch.Tensor | None]:
    """Indices of all elements in the place of each mask among some indices."""
    parts: list[torch.Tensor | None] = []
    for index in indices:
        is_mask = index is not None and index.dtype in (torch.bool, torch.uint8)
        parts += [*_PLACEHOLDERS[_NONZERO](index).unbind(1)] if is_mask else [index]
    return parts


class _ShapesOnly(TorchDispatchMode):
    """Lets CPU and meta tensors meet, for calls that pass by a network's own, such as `vae.encode`.

    A result computed with a meta tensor is meta. A value that is read from it or copied to a device is zero.
    """

    def __init__(self, masks: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._masks = masks

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        on_meta = [leaf.is_meta for leaf in tree_leaves((args, options)) if isinstance(leaf, torch.Tensor)]
        if not any(on_meta):
            return function(*args, **options)
        if function in _PLACEHOLDERS and (self._masks or function is not _NONZERO):
            return _PLACEHOLDERS[function](args[0])
        if function in _INDEXING and self._masks:
            args = (args[0], _without_masks(args[1]), *args[2:])
        if function is torch.ops.aten._to_copy.default and options.get("device") not in (None, torch.device("meta")):
            return torch.zeros_like(args[0], dtype=options.get("dtype"), device=options["device"])
        if all(on_meta):
            return function(*args, **options)
        if function._schema.is_mutable and not args[0].is_meta:
            return args[0]
        return function(*to_meta(args), **to_meta(options))
