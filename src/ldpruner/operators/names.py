"""Dotted names of modules: which module contains which."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any


def overlap(first: str, second: str) -> bool:
    """Whether two modules are the same, or one contains the other."""
    return f"{first}.".startswith(f"{second}.") or f"{second}.".startswith(f"{first}.")


def ancestors(name: str) -> list[str]:
    """The names of all modules that contain a module, outermost first, and its own."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def by_ancestor(names: Iterable[str]) -> defaultdict[str, list[str]]:
    """For each module the names inside it, its own included."""
    inside: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        for ancestor in ancestors(name):
            inside[ancestor].append(name)
    return inside


def as_tuple(values: Any) -> tuple[Any, ...]:
    """A single number or text as a tuple of one."""
    return (values,) if isinstance(values, (int, str)) else tuple(values)
