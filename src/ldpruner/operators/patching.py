"""Modifies operators for a while. Surgery uses the same replacements: what was scored is what is removed."""

import contextlib
import functools
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from ldpruner.errors import OperatorNotFound, PipelineFailed, PlanMismatch
from ldpruner.operators.discovery import Removal
from ldpruner.operators.names import ancestors, as_tuple
from ldpruner.pipelines.exported import check_not_exported
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pipelines.sampling import FAILURES
from ldpruner.stand_ins import replacements

# What a denoiser raises when a replacement does not fit. Running out of memory says nothing about the operator.
MISFITS = (*FAILURES, PipelineFailed)
MAX_INPUTS = 64  # of a module that takes any number
SELECT_AGAIN = "select again"


@contextlib.contextmanager
def modified(denoiser: nn.Module, removals: Iterable[Removal]) -> Iterator[nn.Module]:
    """Modifies operators of a denoiser inside a `with` block and restores them exactly, also after an error.

    No weight is copied or written: the modules themselves are taken out and put back. What `check_removals` refuses
    modifies nothing.
    """
    removals = list(removals)
    check_removals(denoiser, removals)
    pairs = [pair for removal in removals for pair in replacements(denoiser, removal.model_dump())]
    places = _places(denoiser)
    try:
        for module, stand_in in pairs:
            for parent, name in places[id(module)]:
                setattr(parent, name, stand_in)
        yield denoiser
    finally:
        for module, _ in reversed(pairs):
            for parent, name in places[id(module)]:
                setattr(parent, name, module)


def _places(denoiser: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Where each module is registered, by its id: a shared module has several places."""
    places: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for parent in denoiser.modules():
        for name, child in parent._modules.items():
            places[id(child)].append((parent, name))
    return places


def check_removals(denoiser: nn.Module, removals: Sequence[Removal]) -> None:
    """Checks that a denoiser has all the modules of some removals, and that no two of them overlap.

    Raises:
        ExportError: the denoiser is exported.
        OperatorNotFound: a module is missing.
        PlanMismatch: removals overlap, or a replacement would read an input that the operator does not have.
    """
    check_not_exported(denoiser)
    modules = dict(denoiser.named_modules())
    removed: set[str] = set()
    inside: dict[str, str] = {}  # for each module a removed one that it contains
    for removal in removals:
        for name in (removal.operator, *removal.cascaded):
            if not name or name not in modules:
                raise OperatorNotFound(name, modules)
            around = ancestors(name)
            other = next((module for module in around if module in removed), inside.get(name))
            if other is not None:
                raise PlanMismatch(f"operators {other!r} and {name!r} overlap; remove only the outer one")
            removed.add(name)
            inside.update(dict.fromkeys(around, name))
        _check_source(removal, modules)


def _check_source(removal: Removal, modules: Mapping[str, nn.Module]) -> None:
    """Checks that the operator can have what its replacement reads: an input, or the projection on its shortcut."""
    module, selectors = modules[removal.operator], as_tuple(removal.source)
    if removal.modification == "shortcut":
        if not isinstance(removal.source, str):
            raise PlanMismatch(f"{_source(removal)} is no projection in it; {SELECT_AGAIN}")
        if f"{removal.operator}.{removal.source}" not in modules:
            raise OperatorNotFound(f"{removal.operator}.{removal.source}", modules)
        return
    positional, names, takes_any = _inputs(getattr(module.forward, "__func__", module.forward))
    most = MAX_INPUTS if takes_any else len(positional)
    for selector in selectors:
        is_name = isinstance(selector, str) and (selector in names or (takes_any and selector.isidentifier()))
        is_position = isinstance(selector, int) and 0 <= selector < most
        if not (selector is None or is_name or is_position):
            inputs = ", ".join(positional) or "none"
            raise PlanMismatch(f"{_source(removal)} is no input of it (its inputs: {inputs}); {SELECT_AGAIN}")


def removed_parameters(denoiser: nn.Module, removal: Removal) -> int:
    """How many weights a removal takes away."""
    removed = [denoiser.get_submodule(name) for name in (removal.operator, *removal.cascaded)]
    is_shortcut = removal.modification == "shortcut"
    kept = [denoiser.get_submodule(f"{removal.operator}.{removal.source}")] if is_shortcut else []
    return count_parameters(*removed) - count_parameters(*kept)


@functools.lru_cache(maxsize=512)
def _inputs(forward: Callable[..., Any]) -> tuple[list[str], set[str], bool]:
    """The positional inputs of a module's function, the names of all, and whether it takes any others."""
    parameters = [parameter for name, parameter in inspect.signature(forward).parameters.items() if name != "self"]
    variadic = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    named = [parameter for parameter in parameters if parameter.kind not in variadic]
    positional = [parameter.name for parameter in named if parameter.kind is not parameter.KEYWORD_ONLY]
    return positional, {parameter.name for parameter in named}, len(named) < len(parameters)


def _source(removal: Removal) -> str:
    return f"operator {removal.operator!r}: source {removal.source!r}"
