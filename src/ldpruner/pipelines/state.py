"""Puts a pipeline into a known state for a run, and restores the state that it had exactly."""

import contextlib
import copy
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, DiffusionPipeline
from torch import nn

ALIGNMENT = 64  # bytes: that of torch's own memory
OFFLOAD_HOOKS = ("_all_hooks", "_offload_gpu_id", "_offload_device")  # a pipeline renews them at the end of a call


@contextlib.contextmanager
def known_state(pipeline: DiffusionPipeline, seed: int) -> Iterator[None]:
    """Seeds the random states, hides the progress bar and puts all networks into evaluation mode, inside `with`.

    Afterwards everything is as before: the attributes of the pipeline and of its schedulers, the mode, the precision
    and the attention processors of each module, and the random states of torch, NumPy and Python.
    """
    parts, pipelines = list(all_parts(pipeline).values()), _with_inner_pipelines(pipeline)
    configured = {
        id(part): part for part in parts if isinstance(part, ConfigMixin) and not isinstance(part, nn.Module)
    }
    with contextlib.ExitStack() as stack:
        for owner in (*pipelines, *configured.values()):
            stack.callback(_attributes(owner))
        stack.enter_context(evaluation_mode(*(part for part in parts if isinstance(part, nn.Module))))
        stack.enter_context(_seeded(seed))
        for part in pipelines:
            part.set_progress_bar_config(disable=True)
        yield


def align_weights_(pipeline: DiffusionPipeline) -> None:
    """Copies weights on the CPU that lie unaligned, as in a mapped file, to memory of torch's own.

    Some kernels round differently there, so that a pipeline and its reloaded copy would differ in their last bits.
    """
    for part in all_parts(pipeline).values():
        for tensor in [*part.parameters(), *part.buffers()] if isinstance(part, nn.Module) else ():
            if tensor.device.type == "cpu" and type(tensor.data) is torch.Tensor and tensor.data_ptr() % ALIGNMENT:
                tensor.data = tensor.data.clone()


def all_parts(pipeline: DiffusionPipeline) -> dict[str, Any]:
    """The components of a pipeline, and what else it keeps by name: some make their scheduler themselves."""
    kept = {name: value for name, value in vars(pipeline).items() if not name.startswith("_")}
    return {**kept, **pipeline.components}


def _with_inner_pipelines(pipeline: DiffusionPipeline) -> list[DiffusionPipeline]:
    """A pipeline and all that it holds: some are made of several."""
    inner = [value for value in vars(pipeline).values() if isinstance(value, DiffusionPipeline)]
    return [pipeline, *(part for value in inner for part in _with_inner_pipelines(value))]


def _attributes(owner: Any) -> Callable[[], None]:
    """Keeps the attributes of an object, and the contents of its containers; returns what restores them."""
    values = {name: value for name, value in vars(owner).items() if name not in OFFLOAD_HOOKS}
    contents = {name: _contents(value) for name, value in values.items()}

    def restore() -> None:
        hooks = {name: vars(owner)[name] for name in OFFLOAD_HOOKS if name in vars(owner)}
        for name, value in values.items():
            if type(value) is list:
                value[:] = contents[name]
            elif type(value) is dict and value != contents[name]:
                value.clear()
                value.update(contents[name])
            elif isinstance(value, torch.Tensor) and value._version != contents[name][0]:
                value.copy_(contents[name][1])
        vars(owner).clear()
        vars(owner).update(values, **hooks)

    return restore


def _contents(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value._version, value.clone()
    return copy.copy(value) if type(value) in (list, dict) else None


@contextlib.contextmanager
def evaluation_mode(*networks: nn.Module) -> Iterator[None]:
    """Puts networks into evaluation mode, inside `with`: without dropout, as they are used.

    Their weights may be cast meanwhile, and their attention processors replaced; both are restored too. A pipeline
    that is stopped early would leave them.
    """
    modules = list({id(module): module for network in networks for module in network.modules()}.values())
    training = [module for module in modules if module.training]
    with contextlib.ExitStack() as stack:
        stack.callback(_precision(modules))
        stack.callback(_processors(modules))
        stack.callback(_set_training, training, True)
        _set_training(training, False)
        yield


def _set_training(modules: Sequence[nn.Module], training: bool) -> None:
    for module in modules:
        module.training = training


def _processors(modules: Sequence[nn.Module]) -> Callable[[], None]:
    """Keeps the attention processors of modules; returns what restores them."""
    attentions: list[Any] = [module for module in modules if _has_processor(module)]
    processors = [attention.processor for attention in attentions]

    def restore() -> None:
        for attention, processor in zip(attentions, processors, strict=True):
            if attention.processor is not processor:
                attention.set_processor(processor)

    return restore


def _has_processor(module: nn.Module) -> bool:
    is_held = "processor" in vars(module) or "processor" in module._modules
    return is_held and hasattr(module, "set_processor")


def _precision(modules: Sequence[nn.Module]) -> Callable[[], None]:
    """Keeps the dtypes of weights and buffers; returns what restores them."""
    tensors = [weight for module in modules for weight in module._parameters.values()]
    weights = [(weight, weight.dtype) for weight in tensors if weight is not None]
    places = [(module._buffers, name, buffer) for module in modules for name, buffer in module._buffers.items()]
    buffers = [(table, name, buffer.dtype) for table, name, buffer in places if buffer is not None]

    def restore() -> None:
        for weight, dtype in weights:
            if weight.dtype != dtype:
                weight.data = weight.data.to(dtype)
        for table, name, dtype in buffers:
            if (buffer := table.get(name)) is not None and buffer.dtype != dtype:
                table[name] = buffer.to(dtype)

    return restore


@contextlib.contextmanager
def without_caches(network: nn.Module) -> Iterator[None]:
    """Forgets what the modules of a network stored while they ran, such as rotary embeddings."""
    before = [(module, dict(vars(module)), set(module._buffers)) for module in network.modules()]
    try:
        yield
    finally:
        for module, attributes, buffers in before:
            vars(module).clear()
            vars(module).update(attributes)
            for name in module._buffers.keys() - buffers:
                del module._buffers[name]


@contextlib.contextmanager
def outside_pipeline(network: nn.Module) -> Iterator[None]:
    """Lets a network run by itself that has one of diffusers' caches, which only a pipeline opens; it starts empty."""
    if not getattr(network, "is_cache_enabled", False):
        yield
        return
    caching: Any = network
    with caching.cache_context("outside"):
        try:
            yield
        finally:
            caching._reset_stateful_cache()


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds the global random states for a while: some pipelines use them beside their generator."""
    generators = [torch.default_generator]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        generators += torch.cuda.default_generators
    if torch.backends.mps.is_available():
        generators.append(torch.mps._get_default_mps_generator())
    states = [generator.get_state() for generator in generators]
    numpy_state, python_state = np.random.get_state(), random.getstate()
    for generator in generators:
        generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
