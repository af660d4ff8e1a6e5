"""Watches the parts of a pipeline without changing their types: pipelines ask for them."""

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

_LOCK = threading.Lock()
_ABSENT = object()


class _Switch:
    """A class attribute that has another value for some instances; for all others it is what it was."""

    def __init__(self, owner: type, name: str) -> None:
        self.original = inspect.getattr_static(owner, name)
        self.is_own = name in vars(owner)
        self.values: dict[int, Any] = {}  # by the id of the instance

    def __get__(self, instance: Any, owner: type) -> Any:
        if id(instance) in self.values:
            return self.values[id(instance)]
        get = getattr(type(self.original), "__get__", None)
        return self.original if get is None else get(self.original, instance, owner)


@contextlib.contextmanager
def patched(instance: Any, **attributes: Any) -> Iterator[None]:
    """Gives one object other attributes for a while. Its type, its copies and all other objects stay as they are.

    A method is replaced by a function without `self`, which gets the signature of the method: pipelines inspect it.
    The class looks the attributes up, so that a copy of the object does not hold them, and `__call__` can be one.
    """
    with contextlib.ExitStack() as stack:
        for name, value in attributes.items():
            new = _with_signature(value, getattr(instance, name)) if inspect.isfunction(value) else value
            patch = _patched_instance if name in vars(instance) else _patched_class
            stack.enter_context(patch(instance, name, new))
        yield


def _with_signature(function: Callable[..., Any], method: Any) -> Callable[..., Any]:
    def replacement(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    vars(replacement)["__signature__"] = inspect.signature(method)
    return replacement


@contextlib.contextmanager
def _patched_instance(instance: Any, name: str, value: Any) -> Iterator[None]:
    """For what the object itself holds, such as a method that its user has compiled."""
    original = vars(instance)[name]
    vars(instance)[name] = value
    try:
        yield
    finally:
        vars(instance)[name] = original


@contextlib.contextmanager
def _patched_class(instance: Any, name: str, value: Any) -> Iterator[None]:
    owner: Any = type(instance)
    with _LOCK:
        switch = vars(owner).get(name)
        if not isinstance(switch, _Switch):
            switch = _Switch(owner, name)
            setattr(owner, name, switch)
        earlier = switch.values.get(id(instance), _ABSENT)
        switch.values[id(instance)] = value
    try:
        yield
    finally:
        with _LOCK:
            del switch.values[id(instance)]
            if earlier is not _ABSENT:
                switch.values[id(instance)] = earlier
            if not switch.values:
                setattr(owner, name, switch.original) if switch.is_own else delattr(owner, name)
