"""Dotted names of modules: patterns that match them, and which module contains which."""

import fnmatch
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, TypeAlias

from torch import nn

from ldpruner.errors import OperatorNotFound

Patterns: TypeAlias = str | Iterable[str]


def matching_modules(network: nn.Module, patterns: Patterns) -> set[str]:
    """The names of a network's modules that match one of some glob patterns (`*` matches dots, too).

    Raises:
        OperatorNotFound: a pattern matches no module.
    """
    names = [name for name, _ in network.named_modules() if name]
    matches: set[str] = set()
    for pattern in as_tuple(patterns):
        matched = {name for name in names if fnmatch.fnmatchcase(name, pattern)}
        if not matched:
            raise OperatorNotFound(pattern, names)
        matches |= matched
    return matches


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
