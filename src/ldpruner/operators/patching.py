"""Modifies operators for a while. Surgery uses the same replacements: what was scored is what is removed."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from ldpruner.errors import OperatorNotFound, PlanMismatch
from ldpruner.operators.discovery import Removal
from ldpruner.operators.names import overlap
from ldpruner.runtime import replacements, swap_

# What a denoiser raises when a replacement does not fit. Running out of memory says nothing about the operator.
MISFITS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError)
OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")  # of the CPU, MPS, cuBLAS and cuDNN


@contextlib.contextmanager
def modified(denoiser: nn.Module, removals: Iterable[Removal]) -> Iterator[nn.Module]:
    """Modifies operators of a denoiser inside a `with` block and restores them exactly, also after an error.

    No weight is copied or written: the modules themselves are taken out and put back. What `check_removals` refuses
    modifies nothing.
    """
    removals = list(removals)
    check_removals(denoiser, removals)
    pairs = [pair for removal in removals for pair in replacements(denoiser, removal.model_dump())]
    try:
        for module, stand_in in pairs:
            swap_(denoiser, module, stand_in)
        yield denoiser
    finally:
        for module, stand_in in reversed(pairs):
            swap_(denoiser, stand_in, module)


def check_removals(denoiser: nn.Module, removals: Sequence[Removal]) -> None:
    """Checks that a denoiser has all the modules of some removals, and that no two of them overlap.

    Raises:
        OperatorNotFound: a module is missing.
        PlanMismatch: removals overlap.
    """
    modules = {name for name, _ in denoiser.named_modules() if name}
    removed: list[str] = []
    for removal in removals:
        projection = [f"{removal.operator}.{removal.source}"] if removal.modification == "shortcut" else []
        for name in (removal.operator, *removal.cascaded, *projection):
            if name not in modules:
                raise OperatorNotFound(name, modules)
        for name in (removal.operator, *removal.cascaded):
            other = next((other for other in removed if overlap(other, name)), None)
            if other is not None:
                raise PlanMismatch(f"operators {other!r} and {name!r} overlap; remove only the outer one")
            removed.append(name)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch has a type for it on some devices only."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY)
