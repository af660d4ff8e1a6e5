"""Counts the memory of a training step, on the meta device too, where nothing is computed and nothing is held."""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ldpruner.values import Value


class TrainingMemory(Value):
    """Bytes of a training step.

    Attributes:
        weights: all weights and buffers.
        gradients: of what is trained.
        optimizer: its state.
        activations: what else is alive at the peak: what the backward pass needs, and what is computed with.
        peak: the most bytes that are alive at once.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made inside the context, as long as they are alive.

    Attributes:
        current, peak: bytes now, and the most so far. Tensors from before the context do not count.
    """

    def __init__(self, before: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current, self.peak = 0, 0
        self._storages: dict[int, weakref.ref[Any]] = {}
        self._before = {tensor.untyped_storage()._cdata for tensor in before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages or key in self._before:
            return

        def forget(_: Any) -> None:
            self.current -= size
            self._storages.pop(key, None)

        self._storages[key] = weakref.ref(storage, forget)
        self.current += size
        self.peak = max(self.peak, self.current)


@contextlib.contextmanager
def flash_attention() -> Iterator[None]:
    """Computes attention without its matrix inside the context, as kernels do; the meta device would hold the matrix.

    A function of torch is replaced, as gradient checkpointing runs its second forward pass outside of any mode.
    """
    original = functional.scaled_dot_product_attention

    def attention(*args: Any, **kwargs: Any) -> Any:
        is_grouped = kwargs.get("enable_gqa")
        return original(*args, **kwargs) if is_grouped else _flash(*args, **{**kwargs, "enable_gqa": False})

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


def _flash(  # noqa: PLR0917  (as scaled_dot_product_attention)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def training_memory(
    network: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], others: Sequence[Tensor] = ()
) -> TrainingMemory:
    """Counts the memory of the second step of a training: the first one makes the state of the optimizer.

    Args:
        network: on any device; on `meta` nothing is computed. Gradient checkpointing and frozen weights count.
        optimizer: of what is trained.
        loss: calls the network.
        others: tensors besides the weights that are there from the beginning, such as the inputs.
    """
    weights = [*network.parameters(), *network.buffers()]

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    with flash_attention():
        step()
    state = [leaf for leaf in tree_leaves(list(optimizer.state.values())) if isinstance(leaf, Tensor)]
    held = _bytes([*weights, *state])
    with flash_attention(), LiveBytes([*weights, *state, *others]) as live:
        step()
    gradients = sum(weight.nbytes for weight in weights if weight.requires_grad)
    return TrainingMemory(
        weights=_bytes(weights),
        gradients=gradients,
        optimizer=_bytes(state),
        activations=max(0, live.peak - gradients),
        peak=held + live.peak,
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Storages that several tensors share count once."""
    return sum({tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}.values())
