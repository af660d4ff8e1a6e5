"""Modifying operators for a while. Surgery uses the same stand-ins for good: what was scored is what is removed."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from ldpruner.errors import OperatorNotFound, PlanMismatch
from ldpruner.operators.discovery import Removal
from ldpruner.runtime import replacements, swap_

# What a denoiser raises when a stand-in does not fit. Running out of memory says nothing about the operator.
MISFITS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError)

OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")  # of the CPU, MPS, cuBLAS and cuDNN


@contextlib.contextmanager
def modified(denoiser: nn.Module, removals: Iterable[Removal]) -> Iterator[nn.Module]:
    """Modifies operators of a denoiser inside a `with` block, and restores exactly, also after an error.

    No weight is copied or written: the modules themselves are taken out and put back.

    Raises:
        OperatorNotFound: an operator is not there; nothing was modified.
        PlanMismatch: removals overlap; nothing was modified.
    """
    wanted = list(removals)
    check_removals(denoiser, wanted)
    pairs = [pair for removal in wanted for pair in replacements(denoiser, removal.model_dump())]
    try:
        for module, stand_in in pairs:
            swap_(denoiser, module, stand_in)
        yield denoiser
    finally:
        for module, stand_in in reversed(pairs):
            swap_(denoiser, stand_in, module)


def check_removals(denoiser: nn.Module, removals: Sequence[Removal]) -> None:
    """Raises unless a denoiser has all operators, and no removal takes out what another one does."""
    known = {name for name, _ in denoiser.named_modules() if name}
    taken: set[str] = set()
    for removal in removals:
        for name in (removal.operator, *removal.cascaded):
            if name not in known:
                raise OperatorNotFound(name, known)
            overlapping = next(
                (one for one in taken if f"{one}.".startswith(f"{name}.") or f"{name}.".startswith(f"{one}.")), None
            )
            if overlapping is not None:
                raise PlanMismatch(f"operators {overlapping!r} and {name!r} overlap; remove only the outer one")
            taken.add(name)
        if removal.modification == "shortcut" and f"{removal.operator}.{removal.source}" not in known:
            raise OperatorNotFound(f"{removal.operator}.{removal.source}", known)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch has a type for it on some devices only."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY)
