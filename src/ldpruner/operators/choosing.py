"""Which operators are scored: those of a granularity, without those that patterns leave out."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import get_args

from diffusers import DiffusionPipeline
from torch import nn

from ldpruner.errors import NothingToRemove, OperatorNotFound
from ldpruner.operators.discovery import Granularity, Operator, operators_of
from ldpruner.operators.names import as_tuple
from ldpruner.operators.native import native_operators
from ldpruner.operators.tracing import Dataflow
from ldpruner.pipelines.denoiser import Denoiser, find_denoiser
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pipelines.running import Arguments, check_arguments
from ldpruner.values import check_choice

GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)
LARGE = 2 * 10**9  # parameters


def find_operators(
    pipeline: DiffusionPipeline,
    component: str | None = None,
    call: Arguments | None = None,
    *,
    granularity: Granularity | None = None,
    ignore: str | Sequence[str] = (),
    targets: str | Sequence[str] = (),
) -> tuple[Operator, ...]:
    """Lists what can be removed from a pipeline's denoiser, in the order in which it runs.

    One denoiser call is traced on the meta device: no weights are needed or changed.

    Args:
        pipeline: any diffusers pipeline.
        component: the name of the denoiser, for pipelines with more than one.
        call: further arguments that the pipeline's call needs.
        granularity: `block` for whole blocks, `branch` for residual branches too, `leaf` for everything; None is
            `default_granularity`.
        ignore, targets: one or several glob patterns of operators to leave out or to keep, see `matching`.

    Raises:
        DenoiserNotFound: the pipeline cannot be run or has no denoiser.
        ProbeError: its call takes no such argument.
        OperatorNotFound: a pattern matches no operator.
        NothingToRemove: no operator is left.
    """
    check_arguments(pipeline, call or ())
    denoiser = find_denoiser(pipeline, component, call)
    return choose_operators(denoiser, granularity=granularity, ignore=ignore, targets=targets)


def choose_operators(
    denoiser: Denoiser,
    flow: Dataflow | None = None,
    *,
    granularity: Granularity | None = None,
    ignore: str | Sequence[str] = (),
    targets: str | Sequence[str] = (),
    native: bool = False,
) -> tuple[Operator, ...]:
    """The operators of a denoiser whose call was recorded; see `find_operators`.

    Args:
        flow: the trace of the call, if known.
        native: only those of which plans are native (see `native_operators`).
    """
    matched = matching(operators_of(denoiser, flow), ignore=ignore, targets=targets)
    chosen = at_granularity(matched, granularity or default_granularity(denoiser.module))
    if native and not (chosen := native_operators(denoiser.module, chosen)):
        raise NothingToRemove("native=True: the denoiser's class can express no removal of these; leave it out")
    return chosen


def default_granularity(network: nn.Module) -> Granularity:
    """The granularity where none is chosen: `leaf`, but `branch` for a network of two billion parameters or more."""
    return "branch" if count_parameters(network) >= LARGE else "leaf"


def at_granularity(operators: Sequence[Operator], granularity: Granularity) -> tuple[Operator, ...]:
    """The operators that are as coarse as a granularity, or coarser.

    Raises:
        NothingToRemove: there are none, or no such granularity.
    """
    check_choice("granularity", granularity, GRANULARITIES, NothingToRemove)
    coarse = tuple(operator for operator in operators if operator.granularity in up_to(granularity))
    if not coarse:
        raise NothingToRemove(f"granularity={granularity!r} leaves none of {len(operators)} operators; take 'leaf'")
    return coarse


def up_to(granularity: Granularity) -> tuple[Granularity, ...]:
    """What a granularity holds: itself and what is coarser."""
    return GRANULARITIES[: GRANULARITIES.index(granularity) + 1]


def matching(
    operators: Sequence[Operator], *, ignore: str | Sequence[str] = (), targets: str | Sequence[str] = ()
) -> tuple[Operator, ...]:
    """The operators that glob patterns of their dotted names leave; `*` matches dots too.

    Args:
        operators: which to choose from.
        ignore: leaves these out. An operator that holds one may still be removed as a whole: to protect a block, name
            it too (`mid_block*`).
        targets: keeps only these; empty keeps all.

    Raises:
        OperatorNotFound: a pattern matches no operator.
        NothingToRemove: no operator is left.
    """
    ignore, targets = as_tuple(ignore), as_tuple(targets)
    names = [operator.name for operator in operators]
    for pattern in (*ignore, *targets):
        if not _matches(pattern, names):
            raise OperatorNotFound(pattern, names)
    ignored = {name for pattern in ignore for name in _matches(pattern, names)}
    targeted = {name for pattern in targets for name in _matches(pattern, names)} if targets else set(names)
    left = tuple(operator for operator in operators if operator.name in targeted - ignored)
    if not left:
        raise NothingToRemove(f"ignore={list(ignore)}, targets={list(targets)} leave no operator; ignore less")
    return left


def _matches(pattern: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if fnmatchcase(name, pattern)]
