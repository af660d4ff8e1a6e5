"""Reuse of what a pipeline computes before the first denoising step, such as the encoding of a text."""

import contextlib
import copy
import functools
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.utils import _pytree as pytree

from ldpruner.pipelines.running import networks

LIMIT = 2**29  # bytes that are kept
PLAIN = (torch.Tensor, bool, int, float, str, torch.dtype, torch.device, type, type(None))
CACHES = "transformers.cache_utils"  # where the classes are of what language models give beside their states


class CallCache:
    """Runs the networks around a denoiser once on the same input, as long as they stay as they are.

    What they are given after the denoiser's first call changes from step to step, and so does what a ControlNet is
    given: that is not kept.

    Args:
        limit: the bytes that are kept; what was asked for the longest time ago makes room.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit, self._kept = limit, OrderedDict[Hashable, tuple[Any, int]]()

    @contextlib.contextmanager
    def until_called(self, pipeline: DiffusionPipeline, component: str) -> Iterator[None]:
        """For one draw: until the denoiser is called, other networks are not run on what they have seen."""
        with contextlib.ExitStack() as stack:
            for name, network in networks(pipeline).items():
                if name != component:
                    stack.enter_context(_called_by(network, functools.partial(self._answer, name)))
            denoiser = networks(pipeline)[component]
            handle = denoiser.register_forward_pre_hook(lambda *_: stack.close(), prepend=True)
            try:
                yield
            finally:
                handle.remove()

    def _answer(self, name: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        given, form = pytree.tree_flatten((arguments, options))
        if not _are_plain(given):
            return call(*arguments, **options)
        question = (name, str(form), tuple(map(_cache_key, given)))
        if question in self._kept:
            self._kept.move_to_end(question)
            return copy.deepcopy(self._kept[question][0])  # pipelines may write into what they are given
        answer = call(*arguments, **options)
        self._keep(question, answer)
        return answer

    def _keep(self, question: Hashable, answer: Any) -> None:
        leaves = list(_leaves(answer))
        size = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor))
        if size > self._limit or not _are_plain(leaves):
            return
        self._kept[question] = copy.deepcopy(answer), size
        while sum(size for _, size in self._kept.values()) > self._limit:
            self._kept.popitem(last=False)


def _leaves(answer: Any) -> Iterator[Any]:
    for leaf in pytree.tree_leaves(answer):
        if type(leaf).__module__ == CACHES:
            yield from _leaves(vars(leaf))
        else:
            yield leaf


def _are_plain(leaves: list[Any]) -> bool:
    return all(isinstance(leaf, PLAIN) for leaf in leaves)


def _cache_key(leaf: Any) -> Hashable:
    if not isinstance(leaf, torch.Tensor):
        return type(leaf), leaf
    flat = torch.cat([leaf.detach().cpu().flatten()])  # as a view needs strides of 1
    data = flat.view(torch.uint8).numpy().tobytes()
    return leaf.dtype, leaf.device, tuple(leaf.shape), hashlib.blake2b(data, digest_size=16).digest()


@contextlib.contextmanager
def _called_by(network: nn.Module, answer: Callable[..., Any]) -> Iterator[None]:
    """Gives a network a class for a while whose calls go through a function; hooks that replace `forward` stay."""
    original = type(network)
    call = functools.partial(original.__call__, network)

    def called(_: Any, *arguments: Any, **options: Any) -> Any:
        return answer(call, *arguments, **options)

    network.__class__ = type(original.__name__, (original,), {"__call__": called, "__module__": original.__module__})
    try:
        yield
    finally:
        network.__class__ = original
