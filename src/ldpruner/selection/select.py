"""Choosing what to remove: scores, savings and a budget make a plan.

The default is a knapsack (0/1 integer program) of least damage. The paper's own rule, lowest score first, is
`rule="greedy"`.
"""

import itertools
import math

import numpy as np

from ldpruner.budget import Budget
from ldpruner.errors import BudgetError
from ldpruner.scoring.knapsack import Problem, predict
from ldpruner.scoring.results import Score, Scores
from ldpruner.selection.plan import Plan, PlannedRemoval, Rule


def select(scores: Scores, budget: Budget, *, rule: Rule = "knapsack") -> Plan:
    """Chooses what to remove so that a budget is met with the least damage.

    Args:
        scores: of `score_operators`.
        budget: what may be left.
        rule: `knapsack` for the least damage in all, `greedy` for lowest score first, as in the paper.

    Raises:
        BudgetError: the budget cannot be reached; the message says what can.
    """
    removable = [score for score in scores.scores if math.isfinite(score.score)]
    problem = Problem(scores, removable, budget)
    problem.check_reachable()
    chosen = _greedy(problem) if rule == "greedy" else _least_damage(problem)
    selection_frequency = _selection_frequencies(problem) if rule == "knapsack" else {}
    return Plan(
        removed=tuple(
            PlannedRemoval(
                **score.candidate.removal.model_dump(),
                score=score.score,
                selection_frequency=selection_frequency.get(id(score)),
            )
            for score in chosen
        ),
        component=scores.component,
        architecture=scores.architecture,
        budget=budget,
        rule=rule,
        predicted=predict(scores, chosen),
        provenance={
            "probe": scores.probe.model_dump(mode="json", exclude_none=True),
            "metric": scores.metric,
            "exhaustive": _is_exhaustive(scores),
            "denoiser_calls": scores.denoiser_calls,
            "rank_stability": scores.rank_stability,
        },
    )


def _is_exhaustive(scores: Scores) -> bool:
    """Whether all was drawn on all samples."""
    removable = (one for one in scores.scores if math.isfinite(one.score))
    drawn = all(one.samples == scores.probe.samples for one in removable)
    return drawn and all(one.is_known for one in scores.scores)


def _least_damage(problem: Problem) -> list[Score]:
    taken = problem.solve(problem.removal_costs)
    return list(itertools.compress(problem.removable, taken))


def _selection_frequencies(problem: Problem) -> dict[int, float]:
    plans = [best for _, best in problem.redrawn(problem.errors, seed=0)]
    return {id(one): float(share) for one, share in zip(problem.removable, np.mean(plans, axis=0), strict=True)}


def _greedy(problem: Problem) -> list[Score]:
    """Lowest score first until the budget is met. An outer operator takes the place of its inner ones."""
    chosen: list[Score] = []
    for score in sorted(problem.removable, key=lambda one: one.score):
        if problem.is_met(chosen):
            break
        leaves = set(score.candidate.leaves)
        rivals = [one for one in chosen if leaves & set(one.candidate.leaves)]
        if all(set(one.candidate.leaves) < leaves for one in rivals):
            chosen = [one for one in chosen if one not in rivals] + [score]
    if not problem.is_met(chosen):
        raise BudgetError(f"budget {problem.budget} cannot be reached greedily; use rule='knapsack'")
    order = {id(one): place for place, one in enumerate(problem.removable)}
    return sorted(chosen, key=lambda one: order[id(one)])
