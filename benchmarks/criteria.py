"""How the rivals of ld-pruner choose which operators to remove.

Every rival is given the same operators, the same measured savings and the same budget: they differ only in what they
take an operator to be worth. What is expensive is found out once for a case; the cut is asked for afterwards.

    planner = RIVALS["block influence"](Case(pipeline, scores))
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
from ldpruner.errors import BudgetError
from ldpruner.operators.discovery import Candidate
from ldpruner.operators.patching import MISFITS, is_out_of_memory, modified
from ldpruner.pipelines.sampling import BATCH_SIZE, draw_latents, largest_batch
from ldpruner.runtime import replacement
from ldpruner.scoring.knapsack import TOLERANCE, predict
from ldpruner.scoring.results import Score, Scores
from ldpruner.selection.plan import Plan, PlannedRemoval, Rule

CALLS = 6  # of the denoiser, at as many noise levels, on which its output is compared
PAIR = re.compile(r"(?P<way>down|up)_blocks\.(?P<level>\d+)\.(resnets|attentions)\.(?P<place>\d+)$")
MIDDLE = "mid_block"

# Gives the plan that cuts a share of the latency, as predicted; raises BudgetError where the rival cannot.
Planner: TypeAlias = Callable[[float], Plan]
# What torch calls after a module: with the module, its arguments, its options and its result.
Hook: TypeAlias = Callable[[nn.Module, Any, Any, Any], None]


@dataclass(frozen=True)
class Case:
    """What is to be pruned.

    Attributes:
        pipeline: the untouched pipeline.
        scores: ld-pruner's own, whose operators, savings and probe serve every rival.
        seed: of what a rival draws at random.
    """

    pipeline: DiffusionPipeline
    scores: Scores
    seed: int = 0

    @property
    def denoiser(self) -> nn.Module:
        found: nn.Module = self.pipeline.components[self.scores.component]
        return found


def knapsack(case: Case) -> Planner:
    """Ours: the least sum of squared scores for the budget."""
    return functools.partial(_selected, case.scores, "knapsack", "ld-pruner")


def paper(case: Case) -> Planner:
    """LD-Pruner as published (Castells et al. 2024, arXiv 2404.11936): lowest score first."""
    return functools.partial(_selected, case.scores, "greedy", "ld-pruner")


def random_order(case: Case) -> Planner:
    """The paper's rule on scores that are drawn at random: the same order for every cut."""
    values = np.random.default_rng(case.seed).permutation(len(case.scores.scores)).tolist()
    return functools.partial(_selected, _revalued(case.scores, values), "greedy", "random")


def fewest_parameters(case: Case) -> Planner:
    """The smallest operators first, by the weights that go with them.

    What has no weights of its own, such as an activation, is never removed: all of those would go first, for no
    weight and next to no time.
    """
    sizes = [float(one.candidate.parameters) or math.inf for one in case.scores.scores]
    return functools.partial(_selected, _revalued(case.scores, sizes), "greedy", "parameters")


def hand_rule(case: Case) -> Planner:
    """BK-SDM's rule (Kim et al. 2023, arXiv 2305.15798), step by step until the budget is met.

    See `hand_steps` for the steps.
    """
    steps = hand_steps(case.scores.scores)

    def plan(cut: float) -> Plan:
        chosen: list[Score] = []
        for step in steps:
            if predict(case.scores, chosen).latency <= 1 - cut + TOLERANCE:
                break
            chosen += step
        return _checked(_plan(case.scores, chosen), cut, "hand rule")

    return plan


def hand_steps(scores: Sequence[Score]) -> list[list[Score]]:
    """What BK-SDM's rule removes from a U-Net, one step after the other.

    A pair is a ResNet block with the attention behind it; of a block that changes its width, the shortcut projection
    stays. Removed are

    1. as in its base network, the inner pairs: on the way down all but the first of a level, on the way up all but the
       first and the last. With one layer for each block there are none;
    2. as in its small one, the middle block;
    3. as in its tiny one, what is left of the deepest level, then, beyond BK-SDM, of the levels around it.

    In each of 1 and 3 the deepest level goes first, and in a level the way down before the way up. Samplers stay: no
    rule can remove them alone.
    """
    pairs = _pairs(scores)
    sizes = Counter((way, depth) for way, depth, _ in pairs)
    outer = {it for it in pairs if it.place == 0 or (it.way == "up" and it.place == sizes[it.way, it.depth] - 1)}
    order = sorted(pairs, key=lambda it: (it.depth, it.way, it.place))
    middle = [one for one in scores if one.operator == MIDDLE and math.isfinite(one.score)]
    return [
        *(pairs[it] for it in order if it not in outer),
        *([middle] if middle else []),
        *(pairs[it] for it in order if it in outer),
    ]


class _Place(NamedTuple):
    """Where a pair is: on the way down or up, how many levels from the deepest one, and which of its level."""

    way: str
    depth: int
    place: int


def _pairs(scores: Sequence[Score]) -> dict[_Place, list[Score]]:
    """The pairs of ResNet block and attention."""
    found = [(match, one) for one in scores if (match := PAIR.match(one.operator)) and math.isfinite(one.score)]
    deepest = max((int(match["level"]) for match, _ in found), default=0)
    pairs: dict[_Place, list[Score]] = {}
    for match, one in found:
        level = int(match["level"])
        depth = level if match["way"] == "up" else deepest - level
        pairs.setdefault(_Place(match["way"], depth, int(match["place"])), []).append(one)
    return pairs


def block_influence(case: Case) -> Planner:
    """ShortGPT's criterion (Men et al. 2024, arXiv 2403.03853), least influence first."""
    influences = block_influences(case)
    values = [influences.get(one.operator, math.inf) for one in case.scores.scores]
    return functools.partial(_selected, _revalued(case.scores, values), "greedy", "block influence")


def block_influences(case: Case) -> dict[str, float]:
    """How far each block turns what it is given: 1 - cosine of its output and of what would be there without it.

    The vectors are those of single positions or tokens; the mean is over all of them in all calls of the untouched
    pipeline's sampling. Blocks are operators that are made of others and can become the identity; one that changes
    the width is compared with its own shortcut projection, which is what would be left of it.
    """
    blocks = {one.operator: one for one in _blocks(case)}
    turned: dict[str, list[float]] = {name: [] for name in blocks}
    _watch(case, {name: functools.partial(_note, one, turned[name]) for name, one in blocks.items()})
    return {name: float(np.mean(values)) for name, values in turned.items()}


def _blocks(case: Case) -> Iterator[Candidate]:
    for one in case.scores.scores:
        is_composite = any(case.denoiser.get_submodule(one.operator).children())
        if is_composite and one.modification != "zero" and math.isfinite(one.score):
            yield one.candidate


def _note(
    candidate: Candidate, found: list[float], module: nn.Module, arguments: Any, options: Any, result: Any
) -> None:
    stand_in = replacement(module, candidate.modification, candidate.source)
    without, output = _tensor(stand_in(*arguments, **options)), _tensor(result)
    # pictures have their channels behind the batch, tokens at the end
    turned = 1 - cosine_similarity(without, output, dim=1 if output.ndim == 4 else -1)
    found.append(float(turned.mean()))


def output_loss(case: Case) -> Planner:
    """LAPTOP-Diff's criterion (Zhang et al. 2024, arXiv 2404.11098): the least sum of output losses for the budget."""
    losses = output_losses(case)
    scores = _revalued(case.scores, losses).model_copy(update={"metric": "mse"})  # which adds up as it is
    return functools.partial(_selected, scores, "knapsack", "output loss")


def output_losses(case: Case, calls: int = CALLS) -> list[float]:
    """The mean squared change of the denoiser's output by each removal alone, in the order of the scores.

    On states of the untouched pipeline's own sampling, at some of its steps drawn at random; so it needs no data.
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
    losses = [float((one - call[2]).square().mean()) for one, call in zip(outputs, calls, strict=True)]
    mean = float(np.mean(losses))
    return mean if math.isfinite(mean) else math.inf


RIVALS: Mapping[str, Callable[[Case], Planner]] = {
    "knapsack": knapsack,
    "paper": paper,
    "output loss": output_loss,
    "block influence": block_influence,
    "hand rule": hand_rule,
    "fewest parameters": fewest_parameters,
    "random": random_order,
}


def _watch(case: Case, hooks: Mapping[str, Hook]) -> None:
    """Draws all samples of the probe; the hooks are told of every call of the submodules that they are named for."""
    probe = case.scores.probe
    size = largest_batch(case.pipeline, probe, BATCH_SIZE)
    with contextlib.ExitStack() as stack:
        for name, hook in hooks.items():
            handle = case.denoiser.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        for first in range(0, probe.samples, size):
            draw_latents(case.pipeline, probe, range(first, min(first + size, probe.samples)))


def _tensor(result: Any) -> Tensor:
    """The first tensor that a module returned."""
    found: Tensor = result if isinstance(result, Tensor) else result[0]
    return found


def _revalued(scores: Scores, values: Sequence[float]) -> Scores:
    """The scores with other values; what cannot be removed stays so."""
    pairs = zip(scores.scores, values, strict=True)
    valued = (
        one.model_copy(update={"score": value if math.isfinite(one.score) else math.inf}) for one, value in pairs
    )
    return scores.model_copy(update={"scores": tuple(valued)})


def _selected(scores: Scores, rule: Rule, criterion: str, cut: float) -> Plan:
    plan = ldpruner.select(scores, ldpruner.Budget(latency=1 - cut), rule=rule)
    return plan.model_copy(update={"provenance": {**plan.provenance, "criterion": criterion}})


def _plan(scores: Scores, chosen: Sequence[Score]) -> Plan:
    ordered = [one for one in scores.scores if one in chosen]
    removed = tuple(PlannedRemoval(**one.candidate.removal.model_dump(), score=one.score) for one in ordered)
    return Plan(
        removed=removed,
        component=scores.component,
        architecture=scores.architecture,
        predicted=predict(scores, ordered),
    )


def _checked(plan: Plan, cut: float, criterion: str) -> Plan:
    """A plan that says by what it was made, if it meets the budget."""
    assert plan.predicted is not None
    left = plan.predicted.latency
    if left > 1 - cut + TOLERANCE:
        raise BudgetError(
            f"budget latency={1 - cut:g} cannot be reached by {criterion}: all that it removes leaves {left:.3f}"
        )
    budget = ldpruner.Budget(latency=1 - cut)
    return plan.model_copy(update={"budget": budget, "provenance": {"criterion": criterion}})
