"""Temporary changes to a pipeline's parts. Each is a context manager that restores exactly."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn


@contextlib.contextmanager
def patched_class(instance: Any, **attributes: Any) -> Iterator[None]:
    """Gives an object a subclass of its class for a while, under the same name: libraries ask for names of classes."""
    original = type(instance)
    body = {"__module__": original.__module__, **attributes}
    instance.__class__ = type(original.__name__, (original,), body)
    try:
        yield
    finally:
        instance.__class__ = original


def patched_step(scheduler: Any, step: Callable[..., Any]) -> contextlib.AbstractContextManager[None]:
    """Replaces a scheduler's `step` for a while. The class is patched, because a pipeline may copy the scheduler."""
    step.__signature__ = inspect.signature(type(scheduler).step)  # type: ignore[attr-defined]
    return patched_class(scheduler, step=step)


@contextlib.contextmanager
def patched_method(instance: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Replaces a method of one object for a while. The signature stays, because pipelines inspect it."""
    original, is_own = getattr(instance, name), name in vars(instance)
    function.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    setattr(instance, name, function)
    try:
        yield
    finally:
        setattr(instance, name, original) if is_own else delattr(instance, name)


@contextlib.contextmanager
def preserved_dtype(network: nn.Module) -> Iterator[None]:
    """Restores the dtype of every weight: some pipelines upcast their autoencoder while it decodes."""
    dtypes = [(weight, weight.dtype) for weight in network.parameters()]
    try:
        yield
    finally:
        for weight, dtype in dtypes:
            if weight.dtype != dtype:
                weight.data = weight.data.to(dtype)
