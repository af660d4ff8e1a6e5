"""How long work reports its progress: the caller wraps each iterable, and may show a bar."""

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Yielded = TypeVar("Yielded", covariant=True)


class Long(Protocol[Yielded]):
    """Work with a length, which may change on the way."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Yielded]: ...


class Progress(Protocol):
    """Passes on the items of some work, and reports them under a description."""

    def __call__(self, work: Long[Item], description: str) -> Iterator[Item]: ...


def unreported(work: Long[Item], description: str) -> Iterator[Item]:
    """Passes the items on and reports nothing."""
    return iter(work)


def reported(progress: Progress, description: str, function: Callable[[], Item]) -> Item:
    """Calls a function whose length is not known, and reports it as work of one item."""
    (result,) = [function() for _ in progress((None,), description)]
    return result
