"""Which arguments of a denoiser's call are the latents and the noise level, and which belong to the samples."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from ldpruner.errors import FinetuningError
from ldpruner.pipelines.running import Arguments

UNSUPPORTED = "finetune without data: on the original's own calls"


@dataclass(frozen=True)
class SampleParts:
    """The parts of a call that belong to samples.

    Attributes:
        places: positions of tensors with rows of samples, among the leaves of the arguments.
        repeated: names of the arguments that are lists of the same for each row.
        sizes_differ: whether the tensors of one sample have another size beside those of another.
    """

    places: tuple[int, ...]
    repeated: tuple[str, ...]
    sizes_differ: bool


def sample_and_time(call: Arguments, pipeline: str) -> tuple[str, str]:
    """The names of the latents and of the noise level among the arguments of a call.

    Raises:
        FinetuningError: there are none.
    """
    sample = next((name for name, value in call.items() if isinstance(value, Tensor)), None)
    time = next((name for name in call if "timestep" in name), None)
    if sample is None or time is None:
        raise FinetuningError(
            f"{pipeline} calls its denoiser with {', '.join(call)}: no latents and timestep; {UNSUPPORTED}"
        )
    return sample, time


def places_of(call: Arguments, names: Iterable[str]) -> set[int]:
    """Positions of the leaves of some arguments among those of all."""
    wanted = set(names)
    owners = [name for name, value in call.items() for _ in pytree.tree_leaves(value)]
    return {place for place, name in enumerate(owners) if name in wanted}


def parts_of_samples(
    call: Arguments, pair: Arguments | None, other: set[int], rows: int, pipeline: str
) -> SampleParts:
    """The parts of a call that belong to samples: those that grow in the call for two samples.

    Args:
        call, pair: the calls for one sample and for two; without the latter, tensors of `rows` rows are taken.
        other: positions of the leaves that do not count.
        rows: of the latents in the call for one sample.
        pipeline: its name.

    Raises:
        FinetuningError: a list grows otherwise.
    """
    places, repeated, sizes_differ, place = list[int](), list[str](), False, -1
    for name, value in call.items():
        leaves = pytree.tree_leaves(value)
        pair_leaves = pytree.tree_leaves(pair[name]) if pair is not None else [None] * len(leaves)
        if len(leaves) != len(pair_leaves):
            if pair is None or not _is_repeated(value, pair[name]):
                raise FinetuningError(
                    f"{pipeline} gives its denoiser lists that grow with the samples: {name}; {UNSUPPORTED}"
                )
            repeated.append(name)
            pair_leaves = [None] * len(leaves)
        for leaf, pair_leaf in zip(leaves, pair_leaves, strict=True):
            place += 1
            if place in other:
                continue
            if isinstance(leaf, Tensor) and leaf.ndim and _grows(leaf, pair_leaf, rows):
                places.append(place)
                sizes_differ |= pair_leaf is not None and pair_leaf.shape[1:] != leaf.shape[1:]
            sizes_differ |= leaf is None and isinstance(pair_leaf, Tensor)  # a mask, needed for two sizes only
    return SampleParts(tuple(places), tuple(repeated), sizes_differ)


def _is_repeated(value: Any, pair: Any) -> bool:
    """Whether a list holds the same for each row, and nothing of a sample."""
    is_list = isinstance(value, (list, tuple)) and isinstance(pair, (list, tuple)) and len(pair) == 2 * len(value)
    has_tensors = any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(pair))
    return is_list and not has_tensors and all(item == pair[0] for item in pair)


def _grows(leaf: Tensor, pair_leaf: Any, rows: int) -> bool:
    """Whether a tensor grows with the samples; a guess by its rows where there is no call for two samples."""
    if pair_leaf is None:
        return leaf.ndim > 1 and len(leaf) == rows
    return isinstance(pair_leaf, Tensor) and len(pair_leaf) == 2 * len(leaf)
