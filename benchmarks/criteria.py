"""Criteria by which ld-pruner and its baselines choose the operators to remove.

All get the same operators, the same measured savings and the same budget. Each computes its expensive part once for a
case and then makes a plan for any cut.

    planner = CRITERIA["block influence"](Case(pipeline, scores))
    plan = planner(0.5)  # half of the latency gone
"""

import contextlib
import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

import ldpruner
from ldpruner.errors import BudgetError, is_out_of_memory
from ldpruner.knapsack import TOLERANCE
from ldpruner.operators.discovery import Candidate
from ldpruner.operators.patching import MISFITS, modified
from ldpruner.pipelines.sampling import BATCH_SIZE, largest_batch, sample_latents
from ldpruner.scoring.results import Score, Scores
from ldpruner.selection.plan import Plan, PlannedRemoval, Rule
from ldpruner.selection.select import predict
from ldpruner.stand_ins import replacement

CALLS = 6  # of the denoiser, at as many noise levels
PAIR = re.compile(r"(?P<way>down|up)_blocks\.(?P<level>\d+)\.(resnets|attentions)\.(?P<place>\d+)$")
MIDDLE = "mid_block"

# Makes the plan that cuts a share of the predicted latency; raises BudgetError where there is none.
Planner: TypeAlias = Callable[[float], Plan]
# A forward hook of torch: module, arguments, keyword arguments, result.
Hook: TypeAlias = Callable[[nn.Module, Any, Any, Any], None]


@dataclass(frozen=True)
class Case:
    """A pipeline to prune.

    Attributes:
        pipeline: the original.
        scores: those of ld-pruner; every criterion uses its operators, savings and probe.
        seed: of random criteria.
    """

    pipeline: DiffusionPipeline
    scores: Scores
    seed: int = 0

    @property
    def denoiser(self) -> nn.Module:
        denoiser: nn.Module = self.pipeline.components[self.scores.component]
        return denoiser


def knapsack(case: Case) -> Planner:
    """ld-pruner: the least sum of squared scores for the budget."""
    return functools.partial(_selected, case.scores, "knapsack", "ld-pruner")


def paper(case: Case) -> Planner:
    """LD-Pruner as published (Castells et al. 2024, arXiv 2404.11936): lowest score first."""
    return functools.partial(_selected, case.scores, "greedy", "ld-pruner")


def random_order(case: Case) -> Planner:
    """Operators in a random order, the same for every cut."""
    values = np.random.default_rng(case.seed).permutation(len(case.scores.scores)).tolist()
    return functools.partial(_selected, _revalued(case.scores, values), "greedy", "random")


def fewest_parameters(case: Case) -> Planner:
    """Operators with the fewest parameters first.

    Operators without parameters, such as activations, stay: they would all go first and save next to nothing.
    """
    sizes = [float(score.candidate.parameters) or math.inf for score in case.scores.scores]
    return functools.partial(_selected, _revalued(case.scores, sizes), "greedy", "parameters")


def bk_sdm(case: Case) -> Planner:
    """BK-SDM's rule (Kim et al. 2023, arXiv 2305.15798), step by step until the budget is met."""
    steps = bk_sdm_steps(case.scores.scores)

    def plan(cut: float) -> Plan:
        chosen: list[Score] = []
        for step in steps:
            if predict(case.scores, chosen).latency <= 1 - cut + TOLERANCE:
                break
            chosen += step
        return _checked(_plan(case.scores, chosen), cut, "BK-SDM")

    return plan


def bk_sdm_steps(scores: Sequence[Score]) -> list[list[Score]]:
    """The steps in which BK-SDM's rule removes blocks of a U-Net.

    A pair is a ResNet block with the attention behind it; the shortcut projection of a block that changes its width
    stays. The steps remove

    1. the inner pairs, as BK-SDM-Base does: all but the first pair of a down block, all but the first and last pair of
       an up block. There are none with one layer for each block;
    2. the middle block, as BK-SDM-Small does;
    3. the other pairs, from the deepest level (as BK-SDM-Tiny does) to the outer levels (beyond BK-SDM).

    In 1 and 3 the deepest level goes first, and in a level the down block. Samplers stay: no criterion can remove them
    alone.
    """
    pairs = _pairs(scores)
    sizes = Counter((way, depth) for way, depth, _ in pairs)
    outer = {at for at in pairs if at.place == 0 or (at.way == "up" and at.place == sizes[at.way, at.depth] - 1)}
    order = sorted(pairs, key=lambda at: (at.depth, at.way, at.place))
    middle = [score for score in scores if score.operator == MIDDLE and math.isfinite(score.score)]
    return [
        *(pairs[at] for at in order if at not in outer),
        *([middle] if middle else []),
        *(pairs[at] for at in order if at in outer),
    ]


class _Place(NamedTuple):
    """Where a pair is: down or up, how many levels from the deepest, and its place in the level."""

    way: str
    depth: int
    place: int


def _pairs(scores: Sequence[Score]) -> dict[_Place, list[Score]]:
    """The pairs of ResNet block and attention."""
    matches = [
        (match, score) for score in scores if (match := PAIR.match(score.operator)) and math.isfinite(score.score)
    ]
    deepest = max((int(match["level"]) for match, _ in matches), default=0)
    pairs: dict[_Place, list[Score]] = {}
    for match, score in matches:
        level = int(match["level"])
        depth = level if match["way"] == "up" else deepest - level
        pairs.setdefault(_Place(match["way"], depth, int(match["place"])), []).append(score)
    return pairs


def block_influence(case: Case) -> Planner:
    """ShortGPT's criterion (Men et al. 2024, arXiv 2403.03853), least influence first."""
    influences = block_influences(case)
    values = [influences.get(score.operator, math.inf) for score in case.scores.scores]
    return functools.partial(_selected, _revalued(case.scores, values), "greedy", "block influence")


def block_influences(case: Case) -> dict[str, float]:
    """1 - cosine of each block's output and the output without the block.

    The mean is over positions or tokens and over all calls of the original's sampling. Blocks are operators that
    consist of others and can become the identity. A block that changes the width is compared with its shortcut
    projection.
    """
    blocks = {candidate.operator: candidate for candidate in _blocks(case)}
    influences: dict[str, list[float]] = {name: [] for name in blocks}
    _watch(case, {name: functools.partial(_record, block, influences[name]) for name, block in blocks.items()})
    return {name: float(np.mean(values)) for name, values in influences.items()}


def _blocks(case: Case) -> Iterator[Candidate]:
    for score in case.scores.scores:
        is_composite = any(case.denoiser.get_submodule(score.operator).children())
        if is_composite and score.modification != "zero" and math.isfinite(score.score):
            yield score.candidate


def _record(
    candidate: Candidate, influences: list[float], module: nn.Module, arguments: Any, options: Any, result: Any
) -> None:
    stand_in = replacement(module, candidate.modification, candidate.source)
    without, output = _tensor(stand_in(*arguments, **options)), _tensor(result)
    # channels follow the batch in images, and come last in tokens
    influence = 1 - cosine_similarity(without, output, dim=1 if output.ndim == 4 else -1)
    influences.append(float(influence.mean()))


def output_loss(case: Case) -> Planner:
    """LAPTOP-Diff's criterion (Zhang et al. 2024, arXiv 2404.11098): the least sum of output losses for the budget."""
    losses = output_losses(case)
    scores = _revalued(case.scores, losses).replace(metric="mse")  # its scores add up without squares
    return functools.partial(_selected, scores, "knapsack", "output loss")


def output_losses(case: Case, calls: int = CALLS) -> list[float]:
    """The mean squared change of the denoiser's output by each single removal, in the order of the scores.

    Measured on random steps of the original's own sampling, so it needs no data.
    """
    recorded: list[tuple[Any, Any, Tensor]] = []

    def record(_: nn.Module, arguments: Any, options: Any, result: Any) -> None:
        recorded.append((arguments, options, _tensor(result)))

    _watch(case, {"": record})
    order = np.random.default_rng(case.seed).permutation(len(recorded))[:calls]
    chosen = [recorded[place] for place in order]
    return [_output_loss(case, score, chosen) for score in case.scores.scores]


def _output_loss(case: Case, score: Score, calls: Sequence[tuple[Any, Any, Tensor]]) -> float:
    if not math.isfinite(score.score):
        return math.inf
    try:
        with torch.no_grad(), modified(case.denoiser, [score.candidate.removal]):
            outputs = [_tensor(case.denoiser(*arguments, **options)) for arguments, options, _ in calls]
    except MISFITS as error:
        if is_out_of_memory(error):
            raise
        return math.inf
    losses = [float((output - call[2]).square().mean()) for output, call in zip(outputs, calls, strict=True)]
    mean = float(np.mean(losses))
    return mean if math.isfinite(mean) else math.inf


CRITERIA: Mapping[str, Callable[[Case], Planner]] = {
    "ld-pruner": knapsack,
    "greedy (paper)": paper,
    "output loss": output_loss,
    "block influence": block_influence,
    "BK-SDM": bk_sdm,
    "fewest parameters": fewest_parameters,
    "random": random_order,
}


def _watch(case: Case, hooks: Mapping[str, Hook]) -> None:
    """Samples the whole probe with hooks on the named submodules."""
    probe = case.scores.probe
    size = largest_batch(case.pipeline, probe, BATCH_SIZE)
    with contextlib.ExitStack() as stack:
        for name, hook in hooks.items():
            handle = case.denoiser.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        for first in range(0, probe.samples, size):
            sample_latents(case.pipeline, probe, range(first, min(first + size, probe.samples)))


def _tensor(result: Any) -> Tensor:
    """The first tensor that a module returned."""
    tensor: Tensor = result if isinstance(result, Tensor) else result[0]
    return tensor


def _revalued(scores: Scores, values: Sequence[float]) -> Scores:
    """The scores with other values; those of failed modifications stay infinite."""
    pairs = zip(scores.scores, values, strict=True)
    valued = (score.replace(score=value if math.isfinite(score.score) else math.inf) for score, value in pairs)
    return scores.replace(scores=tuple(valued))


def _selected(scores: Scores, rule: Rule, criterion: str, cut: float) -> Plan:
    plan = ldpruner.select(scores, ldpruner.Budget(latency=1 - cut), rule=rule)
    return plan.replace(provenance={**plan.provenance, "criterion": criterion})


def _plan(scores: Scores, chosen: Sequence[Score]) -> Plan:
    ordered = [score for score in scores.scores if score in chosen]
    removed = tuple(PlannedRemoval(removal=score.candidate.removal, score=score.score) for score in ordered)
    return Plan(
        removed=removed,
        component=scores.component,
        architecture=scores.architecture,
        predicted=predict(scores, ordered),
    )


def _checked(plan: Plan, cut: float, criterion: str) -> Plan:
    """The plan with its criterion; raises BudgetError if it misses the budget."""
    assert plan.predicted is not None
    left = plan.predicted.latency
    if left > 1 - cut + TOLERANCE:
        raise BudgetError(
            f"budget latency={1 - cut:g} cannot be reached by {criterion}: all that it removes leaves {left:.3f}"
        )
    budget = ldpruner.Budget(latency=1 - cut)
    return plan.replace(budget=budget, provenance={"criterion": criterion})
