"""One thing on one family: the original as a control, the pruned pipeline, and whether both give the same."""

import copy
import functools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

import ldpruner
from ldpruner.errors import one_line
from ldpruner.operators.choosing import find_operators
from ldpruner.operators.discovery import Operator
from ldpruner.operators.names import overlap
from ldpruner.selection.plan import Plan, PlannedRemoval
from tests.families import FAMILIES, Family

NAMES = {
    "SD 1.x": "stable-diffusion",
    "SDXL": "stable-diffusion-xl",
    "SD3": "stable-diffusion-3",
    "Flux": "flux",
    "Wan": "wan",
    "PixArt": "pixart-sigma",
    "AudioLDM2": "audioldm2",
}
WORKS = "yes"
EXACT = 1e-4  # of the largest value: rounding
LOSSY, LEAST = 3.0, 0.02  # times the error that the same thing makes on the original, and what is always allowed


class DoesNotApply(Exception):
    """The family, or diffusers on this machine, has no such thing."""


class WorksInPart(Exception):
    """It works, but not as with stand-ins."""


@dataclass(frozen=True)
class Subject:
    """A pipeline to try something on, whole or pruned.

    Attributes:
        name: of the family in a table.
        pipeline: its own copy.
        component: the denoiser.
        is_pruned: whether it is pruned.
        plan: what is removed from the pruned one.
    """

    name: str
    pipeline: Any
    component: str
    is_pruned: bool
    plan: Plan

    @property
    def family(self) -> Family:
        return FAMILIES[NAMES[self.name]]

    @property
    def network(self) -> Any:
        """The denoiser."""
        return getattr(self.pipeline, self.component)

    def sample(self, pipeline: Any = None) -> Tensor:
        """Latents of one call."""
        with torch.no_grad():
            return self.family.sample(self.pipeline if pipeline is None else pipeline).float()

    def method(self, name: str) -> Callable[..., Any]:
        """A method of the denoiser or of the pipeline; DoesNotApply if neither has it."""
        for owner in (self.network, self.pipeline):
            method: Callable[..., Any] | None = getattr(owner, name, None)
            if method is not None:
                return method
        raise DoesNotApply(f"diffusers has no {name} here")

    @contextmanager
    def saved(self, **options: Any) -> Iterator[Path]:
        """The pipeline saved in a folder, by `save_pretrained` if there are options for it."""
        with tempfile.TemporaryDirectory() as folder:
            if options:
                self.pipeline.save_pretrained(Path(folder, "pipeline"), **options)
            else:
                ldpruner.save(self.pipeline, Path(folder, "pipeline"))
            yield Path(folder, "pipeline")


Thing = Callable[[Subject], Tensor | None]


def outcome(thing: Thing, name: str, *, is_lossy: bool = False) -> str:
    """`yes`, `in part: REASON`, `refused: REASON`, or `-: REASON` where it does not apply; anything else raises.

    The latents of the pruned pipeline with the thing are those without it: exactly, or, where the thing is lossy, as
    near as they are on the original.
    """
    try:
        limit = LEAST + LOSSY * _error(thing, subject(name, is_pruned=False)) if is_lossy else EXACT
        _check(thing, subject(name, is_pruned=True), limit)
    except DoesNotApply as reason:
        return f"-: {reason}"
    except WorksInPart as reason:
        return f"in part: {reason}"
    except Exception as failure:
        try:
            _check(thing, subject(name, is_pruned=False), limit=EXACT)
        except Exception as control:  # noqa: BLE001  (whatever it is, the pruned pipeline is not to blame)
            return f"-: not on the original either: {one_line(control)}"
        if isinstance(failure, ldpruner.LdPrunerError | ValueError | TypeError | AttributeError) and _is_ours(failure):
            return f"refused: {one_line(failure)}"
        raise
    return WORKS


def _check(thing: Thing, tried: Subject, limit: float) -> None:
    error = _error(thing, tried)
    if not error <= limit:
        raise AssertionError(f"off by {error:.3g} of the latents, {limit:.3g} allowed")


def _is_ours(failure: Exception) -> bool:
    """Whether ld-pruner itself raised an error."""
    trace = failure.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "ldpruner" in trace.tb_frame.f_code.co_filename


def _error(thing: Thing, tried: Subject) -> float:
    """How far the latents with a thing are from those without it, relative to the largest."""
    expected = tried.sample()
    actual = thing(tried)
    if actual is None:
        return 0.0
    if not torch.isfinite(actual).all():
        raise AssertionError("the latents are not finite")
    return float((actual.float() - expected).abs().max() / expected.abs().max())


def subject(name: str, *, is_pruned: bool) -> Subject:
    """A fresh copy of the whole or the pruned pipeline of a family."""
    original, pruned, plan = _pair(name)
    pipeline = pruned if is_pruned else original
    copied = type(pipeline)(**{key: copy.deepcopy(part) for key, part in pipeline.components.items()})
    copied.register_to_config(
        **{key: value for key, value in pipeline.config.items() if key not in pipeline.components}
    )
    assert plan.component is not None
    return Subject(name, copied, plan.component, is_pruned, plan)


@functools.cache
def _pair(name: str) -> tuple[DiffusionPipeline, DiffusionPipeline, Plan]:
    family = FAMILIES[NAMES[name]]
    original = family.pipeline()
    plan = mixed_plan(find_operators(original, family.component, family.call))
    plan = plan.replace(provenance={"probe": {"call": dict(family.call)}})
    return original, ldpruner.prune(original, plan), plan


def mixed_plan(operators: tuple[Operator, ...]) -> Plan:
    """A removal of each kind: a whole block, a branch, a projection of an attention, a norm; none overlap."""
    chosen: list[Operator] = []
    for is_wanted in (
        lambda name: name.rpartition(".")[2] in ("1", "mid_block"),  # the second block of a list
        lambda name: name.endswith(("ff", "ffn", "ff_context")),
        lambda name: name.endswith("to_q"),
        lambda name: name.endswith(("attn2", "attn")),
        lambda name: "norm" in name.rpartition(".")[2],
    ):
        free = (
            operator for operator in reversed(operators) if is_wanted(operator.name) and _is_free(operator, chosen)
        )
        chosen += [operator for operator in (next(free, None),) if operator is not None]
    removals = [operator.candidates[-1].removal for operator in chosen]
    return Plan(removed=tuple(PlannedRemoval(removal=one) for one in removals), component=operators[0].component)


def _is_free(operator: Operator, chosen: list[Operator]) -> bool:
    leaves = set(operator.candidates[-1].leaves)
    return all(
        leaves.isdisjoint(other.candidates[-1].leaves) and not overlap(operator.name, other.name) for other in chosen
    )
