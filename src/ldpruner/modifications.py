"""Modifying operators for a while. Surgery uses the same replacements for good: what was scored is what is removed."""

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn

from ldpruner.errors import OperatorNotFound
from ldpruner.operators import Removal
from ldpruner.pruned import replace_, swap_


@contextlib.contextmanager
def modified(denoiser: nn.Module, removals: Iterable[Removal]) -> Iterator[nn.Module]:
    """Modifies operators of a denoiser inside a `with` block, and restores exactly, also after an error.

    No weight is copied or written: the modules themselves are taken out and put back.

    Raises:
        OperatorNotFound: an operator is not there; nothing was modified.
    """
    wanted = list(removals)
    check_operators(denoiser, wanted)
    swapped = replace_(denoiser, [removal.model_dump() for removal in wanted])
    try:
        yield denoiser
    finally:
        for module, stand_in in reversed(swapped):
            swap_(denoiser, stand_in, module)


def check_operators(denoiser: nn.Module, removals: Iterable[Removal]) -> None:
    """Raises OperatorNotFound for the first operator that the denoiser does not have."""
    known = {name for name, _ in denoiser.named_modules() if name}
    for removal in removals:
        for name in (removal.operator, *removal.also):
            if name not in known:
                raise OperatorNotFound(name, known)
