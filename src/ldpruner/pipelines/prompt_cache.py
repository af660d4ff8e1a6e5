"""Caches what a pipeline computes before the first denoising step, such as the embeddings of a prompt."""

import contextlib
import copy
import functools
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch.utils import _pytree as pytree

from ldpruner.pipelines.patches import patched
from ldpruner.pipelines.running import networks

MAX_BYTES = 2**29
PLAIN_TYPES = (torch.Tensor, bool, int, float, str, torch.dtype, torch.device, type, type(None))
TEXT_CACHES = "transformers.cache_utils"  # the module of the key-value caches that language models return


class CallCache:
    """Runs each network of a pipeline once for the same input, as long as the network does not change.

    Only calls before the denoiser's first one are cached: later inputs change from step to step, and so do those of a
    ControlNet. The outputs that were used the longest time ago are dropped first.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes, self._outputs = max_bytes, OrderedDict[Hashable, tuple[Any, int]]()

    @contextlib.contextmanager
    def before_denoising(self, pipeline: DiffusionPipeline, component: str, *watched: str) -> Iterator[None]:
        """Caches the calls of all networks but the denoiser, for one call of the pipeline, until the denoiser runs.

        Networks that are watched run each time: a cached call runs no hooks.
        """
        with contextlib.ExitStack() as stack:
            for name, network in networks(pipeline).items():
                if name not in (component, *watched):
                    cached = self._cached_call(name, functools.partial(type(network).__call__, network))
                    stack.enter_context(patched(network, __call__=cached))  # `forward` may be a hook's
            denoiser = networks(pipeline)[component]
            handle = denoiser.register_forward_pre_hook(lambda *_: stack.close(), prepend=True)
            try:
                yield
            finally:
                handle.remove()

    def _cached_call(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def cached(*args: Any, **kwargs: Any) -> Any:
            leaves, structure = pytree.tree_flatten((args, kwargs))
            if not _are_plain(leaves):
                return call(*args, **kwargs)
            key = (name, str(structure), tuple(map(_cache_key, leaves)))
            if key in self._outputs:
                self._outputs.move_to_end(key)
                return copy.deepcopy(self._outputs[key][0])  # pipelines may write into outputs
            output = call(*args, **kwargs)
            self._store(key, output)
            return output

        return cached

    def _store(self, key: Hashable, output: Any) -> None:
        leaves = list(_leaves(output))
        size = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor))
        if size > self._max_bytes or not _are_plain(leaves):
            return
        self._outputs[key] = copy.deepcopy(output), size
        while sum(size for _, size in self._outputs.values()) > self._max_bytes:
            self._outputs.popitem(last=False)


def _leaves(output: Any) -> Iterator[Any]:
    for leaf in pytree.tree_leaves(output):
        if type(leaf).__module__ == TEXT_CACHES:
            yield from _leaves(vars(leaf))
        else:
            yield leaf


def _are_plain(leaves: list[Any]) -> bool:
    return all(isinstance(leaf, PLAIN_TYPES) for leaf in leaves)


def _cache_key(leaf: Any) -> Hashable:
    if not isinstance(leaf, torch.Tensor):
        return type(leaf), leaf
    flat = torch.cat([leaf.detach().cpu().flatten()])  # a copy, because a view as bytes needs strides of 1
    data = flat.view(torch.uint8).numpy().tobytes()
    return leaf.dtype, leaf.device, tuple(leaf.shape), hashlib.blake2b(data, digest_size=16).digest()
