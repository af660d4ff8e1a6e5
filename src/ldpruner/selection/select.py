"""Choosing what to remove: scores, savings and a budget make a plan.

The default is a knapsack (0/1 integer program) of least cost. The paper's own rule, lowest score first, is
`rule="greedy"`.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ldpruner.budget import QUANTITIES, Budget, Predicted
from ldpruner.errors import BudgetError
from ldpruner.knapsack import TOLERANCE, Floats, Knapsack
from ldpruner.operators.choosing import GRANULARITIES, up_to
from ldpruner.operators.discovery import Granularity
from ldpruner.scoring.importance import power
from ldpruner.scoring.results import Score, Scores
from ldpruner.selection.plan import RULES, Plan, PlannedRemoval, Rule
from ldpruner.values import check_choice

FRONTIER = [percent / 100 for percent in range(95, 0, -5)]  # of the latency
REDRAWS = 8  # of scores within their errors, for selection frequencies


def select(
    scores: Scores,
    budget: Budget,
    *,
    rule: Rule = "knapsack",
    native: bool = False,
    granularity: Granularity | None = None,
    seed: int = 0,
) -> Plan:
    """Chooses what to remove so that a budget is met at the least cost.

    Args:
        scores: of `score_operators`.
        budget: what may be left.
        rule: `knapsack` for the least cost in all, `greedy` for lowest score first, as in the paper, `random` for
            removals in random order, to compare with.
        native: remove only what the denoiser's class can express, such as whole blocks: the pruned pipeline is then a
            plain folder of diffusers. The plan's provenance says what the best of all plans costs.
        granularity: remove only `block`s, or blocks and `branch`es; None and `leaf` remove whatever was scored.
        seed: of the random order.

    Raises:
        BudgetError: the budget cannot be reached; the message says what can.
    """
    check_choice("rule", rule, RULES, BudgetError)
    removable = _removable(scores, granularity or "leaf")
    members = _members(scores, removable, native=native)
    knapsack = scores.knapsack(removable, budget).merged(members)
    costs = members @ scores.removal_costs(removable)
    _check_reachable(scores, knapsack, budget)
    if rule == "knapsack":
        chosen = _cheapest(knapsack, costs, budget)
        errors = members @ _errors(scores, removable) / members.sum(1)
        frequencies: list[float | None] = [*(_selection_frequencies(knapsack, costs, errors) @ members)]
    else:
        order = (
            costs.argsort(kind="stable") if rule == "greedy" else np.random.default_rng(seed).permutation(len(costs))
        )
        chosen = _in_order(order.tolist(), knapsack, replaces=rule == "greedy")
        frequencies = [None] * len(removable)
        if not knapsack.is_met(chosen):
            raise BudgetError(f"budget {budget} cannot be reached by rule={rule!r}; use rule='knapsack'")
    chosen = chosen @ members
    return Plan(
        removed=tuple(
            PlannedRemoval(
                removal=score.candidate.removal,
                score=score.score,
                parameters=score.candidate.parameters,
                selection_frequency=frequency,
            )
            for score, frequency, is_chosen in zip(removable, frequencies, chosen, strict=True)
            if is_chosen
        ),
        component=scores.component,
        architecture=scores.architecture,
        budget=budget,
        rule=rule,
        predicted=predict(scores, itertools.compress(removable, chosen)),
        machine=scores.costs.machine,
        provenance=_provenance(scores) | (_native_costs(scores, removable, budget, chosen) if native else {}),
    )


def frontier(scores: Scores) -> Iterator[tuple[float, list[Score]]]:
    """The cheapest plans for one latency budget after the other, down to the least that can be reached.

    Yields:
        the fraction of the latency to keep, and the removals.
    """
    removable = _removable(scores, "leaf")
    costs = scores.removal_costs(removable)
    for kept in FRONTIER:
        chosen = scores.knapsack(removable, Budget(latency=kept)).solve(costs)
        if chosen is None:
            return
        yield kept, list(itertools.compress(removable, chosen))


def _removable(scores: Scores, granularity: Granularity) -> list[Score]:
    """The scores of what can be removed and is as coarse as a granularity."""
    check_choice("granularity", granularity, GRANULARITIES, BudgetError)
    coarse = [score for score in scores.scores if score.candidate.granularity in up_to(granularity)]
    if scores.scores and not coarse:
        raise BudgetError(f"granularity={granularity!r}: nothing that coarse was scored; score again, or leave it out")
    return [score for score in coarse if math.isfinite(score.score)]


def _members(scores: Scores, removable: Sequence[Score], *, native: bool) -> Floats:
    """[groups, removable] 1 for the removals that are chosen together: each is a group, or those that are native."""
    if not native:
        return np.eye(len(removable))
    places = {score.operator: place for place, score in enumerate(removable)}
    groups = [group for group in scores.native if all(name in places for name in group)]
    if not groups:
        raise BudgetError(
            "native=True: the denoiser's class can express no removal, or the scores are of an older version; "
            "score again, or leave it out"
        )
    members = np.zeros((len(groups), len(removable)))
    for row, group in zip(members, groups, strict=True):
        row[[places[name] for name in group]] = 1
    return members


def _native_costs(scores: Scores, removable: Sequence[Score], budget: Budget, chosen: Floats) -> dict[str, object]:
    """What a native plan costs, and what the best of all plans costs, as predicted latent shifts squared."""
    costs = scores.removal_costs(removable)
    best = _cheapest(scores.knapsack(removable, budget), costs, budget)
    return {"native": True, "cost": float(costs @ chosen), "least_cost": float(costs @ best)}


def predict(scores: Scores, chosen: Iterable[Score]) -> Predicted:
    """What is left of the original once some operators are removed, as kept fractions."""
    savings = [score.savings for score in chosen]
    sums = {name: sum(saved.fraction(scores.costs, name) for saved in savings) for name in QUANTITIES}
    return Predicted(**{name: 1 - scores.saved_together(name, summed) for name, summed in sums.items()})


def _check_reachable(scores: Scores, knapsack: Knapsack, budget: Budget) -> None:
    """Raises BudgetError where even the largest removal leaves too much."""
    for (name, kept), summed in zip(budget.kept.items(), knapsack.most_saved(), strict=True):
        saved = scores.saved_together(name, summed)
        if 1 - saved > kept + TOLERANCE:
            reachable = math.ceil((1 - saved) * 1000) / 1000
            raise BudgetError(
                f"budget {name}={kept:g} cannot be reached: removing all that can be removed leaves "
                f"{1 - saved:.3f}; ask for {name}={reachable:g} or more",
                least=reachable if name == "latency" else None,
            )
    if budget.operators is not None and budget.operators > (count := knapsack.most_items()):
        raise BudgetError(f"budget {budget} cannot be reached: at most {count} can be removed together")


def _cheapest(knapsack: Knapsack, costs: Floats, budget: Budget) -> Floats:
    chosen = knapsack.solve(costs)
    if chosen is None:
        raise BudgetError(f"budget {budget} cannot be reached: its parts exclude each other; ask for less")
    return chosen


def _errors(scores: Scores, removable: Sequence[Score]) -> Floats:
    """[removable] standard errors of the logarithms of the costs."""
    return power(scores.metric) * np.array([score.standard_error or 0.0 for score in removable])


def _selection_frequencies(knapsack: Knapsack, costs: Floats, errors: Floats) -> Floats:
    """[items] The share of the plans that hold each removal when costs are redrawn within their errors."""
    noise = np.random.default_rng(0).normal(size=(REDRAWS, len(costs)))
    plans = [knapsack.solve(costs * np.exp(errors * each), relaxed=True) for each in noise]
    return np.asarray(np.mean([plan for plan in plans if plan is not None], axis=0))


def _in_order(order: Sequence[int], knapsack: Knapsack, *, replaces: bool) -> Floats:
    """Items in an order until enough is saved; none that overlaps an earlier one, or it replaces those within it."""
    chosen = np.zeros(len(knapsack))
    for place in order:
        if knapsack.is_met(chosen):
            break
        parts = set(knapsack.parts[place])
        earlier = {other: set(knapsack.parts[other]) for other in np.flatnonzero(chosen).tolist()}
        overlapping = [other for other, held in earlier.items() if held & parts]
        if all(replaces and earlier[other] < parts for other in overlapping):
            chosen[overlapping], chosen[place] = 0, 1
    return chosen


def _provenance(scores: Scores) -> dict[str, object]:
    """Where a plan comes from."""
    return {
        "probe": scores.probe.model_dump(mode="json", exclude_none=True),
        "metric": scores.metric,
        "exhaustive": _is_exhaustive(scores),
        "denoiser_calls": scores.denoiser_calls,
        "rank_stability": scores.rank_stability,
    }


def _is_exhaustive(scores: Scores) -> bool:
    """Whether every modification was sampled on all samples."""
    removable = (score for score in scores.scores if math.isfinite(score.score))
    sampled = all(score.samples >= scores.probe.samples for score in removable)
    return sampled and all(score.is_known for score in scores.scores)
