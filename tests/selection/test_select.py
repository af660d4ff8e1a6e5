"""Selection: the knapsack against brute force, the paper's rule against its text, budgets and plans."""

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest

from ldpruner.budget import QUANTITIES, Budget
from ldpruner.errors import BudgetError
from ldpruner.operators.choosing import GRANULARITIES
from ldpruner.operators.discovery import Candidate
from ldpruner.pipelines.fingerprints import Architecture
from ldpruner.pipelines.probe import Probe
from ldpruner.profiling.costs import Costs
from ldpruner.scoring.results import Savings, Score, Scores
from ldpruner.selection.plan import RULES, Plan, Rule
from ldpruner.selection.select import predict, select

TOTAL = 1000


def score(name: str, value: float, leaves: tuple[str, ...], parameters: int, macs: int | None = None) -> Score:
    macs = parameters if macs is None else macs
    candidate = Candidate(operator=name, modification="identity", leaves=leaves, parameters=parameters, macs=macs)
    savings = Savings(parameters=parameters, macs=macs, latency_ms=float(macs), memory=4 * parameters)
    return Score(
        operator=name,
        module_type="resnet",
        modification="identity",
        score=value,
        samples=1,
        savings=savings,
        candidate=candidate,
        failure=None if math.isfinite(value) else "RuntimeError: no",
    )


def known(*scores: Score) -> Scores:
    return Scores(
        component="unet",
        architecture=Architecture(name="UNet2DModel", parameters=TOTAL, digest="0"),
        probe=Probe(samples=1),
        metric="mean_std",
        costs=Costs(parameters=TOTAL, macs=TOTAL, latency_ms=TOTAL, denoiser_ms=TOTAL, memory=8 * TOTAL),
        denoiser_calls=1,
        scores=scores,
    )


def random_scores(seed: int) -> Scores:
    """Leaves, blocks of two or three of them, and one stage around two blocks; one score is infinite."""
    random = np.random.default_rng(seed)
    leaves = [f"stage.{block}.{leaf}" for block in range(3) for leaf in range(2)]
    costs = random.integers(20, 120, (2, len(leaves)))
    groups: dict[str, tuple[str, ...]] = {leaf: (leaf,) for leaf in leaves}
    groups |= {f"stage.{block}": tuple(leaves[2 * block : 2 * block + 2]) for block in range(3)}
    groups["stage"] = tuple(leaves[:4])
    scores = []
    for name, members in groups.items():
        parameters, macs = (int(sum(row[leaves.index(leaf)] for leaf in members)) for row in costs)
        scores.append(score(name, float(random.gamma(2.0, len(members))), members, parameters, macs))
    scores[int(random.integers(len(leaves)))] = score(leaves[0], math.inf, (leaves[0],), 900)
    return known(*scores)


def brute_force(scores: Scores, budget: Budget) -> float | None:
    """The least sum of squared scores of any allowed set that meets the budget."""
    finite = [one for one in scores.scores if math.isfinite(one.score)]
    best = None
    for size in range(len(finite) + 1):
        for chosen in itertools.combinations(finite, size):
            leaves = [leaf for one in chosen for leaf in one.candidate.leaves]
            if len(set(leaves)) != len(leaves) or (budget.operators is not None and size != budget.operators):
                continue
            if any(left(chosen, name) > kept + 1e-9 for name, kept in budget.kept.items()):
                continue
            cost = sum(one.score**2 for one in chosen)
            best = cost if best is None else min(best, cost)
    return best


def left(chosen: tuple[Score, ...], name: str) -> float:
    saved = {
        "latency": sum(one.savings.latency_ms for one in chosen),
        "parameters": sum(one.savings.parameters for one in chosen),
        "macs": sum(one.savings.macs for one in chosen),
        "memory": sum(one.savings.memory for one in chosen) / 8,
    }
    return 1 - saved[name] / TOTAL


def chosen_from(scores: Scores, plan: Plan) -> tuple[Score, ...]:
    names = [one.operator for one in plan.removed]
    return tuple(one for one in scores.scores if one.operator in names and math.isfinite(one.score))


BUDGETS: list[dict[str, Any]] = [
    {"parameters": 0.8},
    {"macs": 0.65},
    {"latency": 0.7, "parameters": 0.75},
    {"memory": 0.9},
    {"operators": 3},
    {"operators": 2, "parameters": 0.8},
    {"parameters": 1.0},
]


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_the_knapsack_finds_what_brute_force_finds(seed: int, budget: dict[str, Any]) -> None:
    scores, wanted = random_scores(seed), Budget(**budget)
    expected = brute_force(scores, wanted)
    if expected is None:
        with pytest.raises(BudgetError):
            select(scores, wanted)
        return
    plan = select(scores, wanted)
    assert sum(one.score**2 for one in plan.removed) == pytest.approx(expected)
    chosen = chosen_from(scores, plan)
    leaves = [leaf for one in chosen for leaf in one.candidate.leaves]
    assert len(leaves) == len(set(leaves))
    assert all(left(chosen, name) <= kept + 1e-9 for name, kept in wanted.kept.items())
    assert wanted.operators is None or len(plan.removed) == wanted.operators


def test_a_latency_budget_is_met_by_what_plans_were_measured_to_save() -> None:
    scores = known(*(score(str(place), 1.0 + place, (str(place),), 100) for place in range(8)))
    together = scores.replace(latency_curve=((0.0, 0.0), (0.4, 0.6), (1.0, 1.0)))
    for kept, count in ((0.4, 4), (0.7, 2), (0.7001, 2), (0.6999, 3)):
        plan = select(together, Budget(latency=kept))
        assert len(plan.removed) == count
        assert plan.predicted is not None
        assert plan.predicted.latency == pytest.approx(1 - together.saved_together("latency", count / 10))
        assert plan.predicted.macs == pytest.approx(1 - count / 10)
        assert [planned.operator for planned in plan.removed] == [str(place) for place in range(count)]
    with pytest.raises(BudgetError, match=r"leaves 0\.133; ask for latency=0\.134 or more"):
        select(together, Budget(latency=0.1))


def test_the_problems_of_the_brute_force_test_are_mostly_feasible() -> None:
    solved = [brute_force(random_scores(seed), Budget(**budget)) for seed in range(6) for budget in BUDGETS]
    assert sum(one is not None for one in solved) > len(solved) / 2


BLOCK = ("b.0", "b.1")
NESTED = known(
    score("a", 1.0, ("a",), 100),
    score("b", 3.0, BLOCK, 400),
    score("b.0", 2.0, ("b.0",), 100),
    score("b.1", 4.0, ("b.1",), 300),
    score("c", 5.0, ("c",), 200),
)


@pytest.mark.parametrize(
    ("kept", "removed"),
    [
        (0.95, ["a"]),
        (0.85, ["a", "b.0"]),
        (0.75, ["a", "b"]),  # the block comes next, and takes the place of its first half
        (0.45, ["a", "b", "c"]),  # its second half is gone with it, and skipped
    ],
)
def test_lowest_first_is_the_papers_rule_and_an_outer_operator_replaces_its_inner_ones(
    kept: float, removed: list[str]
) -> None:
    plan = select(NESTED, Budget(parameters=kept), rule="greedy")
    assert [one.operator for one in plan.removed] == removed
    assert plan.rule == "greedy"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 2, 3])
def test_lowest_first_takes_the_lowest_scores(seed: int, count: int) -> None:
    scores = random_scores(seed)
    plan = select(scores, Budget(operators=count), rule="greedy")
    chosen = chosen_from(scores, plan)
    assert len(chosen) == len(plan.removed) == count
    taken = {leaf for one in chosen for leaf in one.candidate.leaves}
    highest = max(one.score for one in chosen)
    below = [one for one in scores.scores if one.score < highest and one not in chosen]
    assert all(set(one.candidate.leaves) & taken for one in below)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_budget_of_operators_removes_as_many(rule: Rule, count: int) -> None:
    assert len(select(NESTED, Budget(operators=count), rule=rule).removed) == count


@pytest.mark.parametrize("rule", RULES)
def test_what_is_predicted_is_the_sum_of_the_savings(rule: Rule) -> None:
    plan = select(NESTED, Budget(parameters=0.5), rule=rule)
    chosen = chosen_from(NESTED, plan)
    assert plan.predicted is not None
    for name in QUANTITIES:
        assert getattr(plan.predicted, name) == pytest.approx(left(chosen, name))
    assert predict(NESTED, chosen) == plan.predicted


def test_a_plan_lists_removals_as_the_operators_run() -> None:
    places = {one.operator: place for place, one in enumerate(NESTED.scores)}
    for rule in RULES:
        plan = select(NESTED, Budget(parameters=0.5), rule=rule)
        order = [places[one.operator] for one in plan.removed]
        assert order == sorted(order)


def test_a_plan_of_the_real_pipeline_knows_where_it_came_from(scores: Scores) -> None:
    plan = select(scores, Budget(parameters=0.7, macs=0.9))
    assert plan.architecture == scores.architecture
    assert (plan.component, plan.rule) == ("unet", "knapsack")
    assert plan.provenance["denoiser_calls"] == scores.denoiser_calls
    assert plan.provenance["metric"] == "mean_std"
    of = {one.operator: one for one in scores.scores}
    assert all(one.score == of[one.operator].score for one in plan.removed)


def assert_one_line(error: BaseException, *parts: str) -> None:
    message = str(error)
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("name", QUANTITIES)
def test_a_budget_out_of_reach_names_what_can_be_reached(scores: Scores, name: str) -> None:
    with pytest.raises(BudgetError) as caught:
        select(scores, Budget.model_validate({name: 0.001}))
    assert_one_line(caught.value, f"{name}=0.001")
    offered = re.search(rf"ask for {name}=([0-9.]+) or more", str(caught.value))
    assert offered is not None
    kept = float(offered[1])
    plan = select(scores, Budget.model_validate({name: kept}))
    assert plan.predicted is not None
    assert getattr(plan.predicted, name) <= kept + 1e-9
    with pytest.raises(BudgetError):
        select(scores, Budget.model_validate({name: kept - 0.002}))


@pytest.mark.parametrize("rule", RULES)
def test_more_operators_than_there_are_names_how_many_can_go(rule: Rule) -> None:
    with pytest.raises(BudgetError) as caught:
        select(NESTED, Budget(operators=77), rule=rule)
    assert_one_line(caught.value, "operators=77", "4")  # a, both halves of b, c


def test_nothing_is_removable_where_no_score_is_finite() -> None:
    scores = known(score("a", math.inf, ("a",), 100))
    with pytest.raises(BudgetError) as caught:
        select(scores, Budget(parameters=0.9))
    assert_one_line(caught.value, "parameters=0.9")
    assert select(scores, Budget(parameters=1.0)).removed == ()


def test_a_plan_says_which_removals_are_certain_and_which_are_a_toss_up() -> None:
    def unsure(one: Score, error: float) -> Score:
        return one.replace(standard_error=error)

    scores = known(
        unsure(score("free", 0.01, ("a",), 200), 0.05),
        unsure(score("one", 1.0, ("b",), 300), 0.35),
        unsure(score("other", 1.1, ("c",), 300), 0.35),
        unsure(score("dear", 9.0, ("d",), 500), 0.05),
    )
    plan = select(scores, Budget(parameters=0.5))
    selection_frequency = {one.operator: one.selection_frequency for one in plan.removed}
    assert set(selection_frequency) == {"free", "one"}
    assert selection_frequency["free"] == 1
    assert selection_frequency["one"] is not None
    assert 0 < selection_frequency["one"] < 1
    rules: tuple[Rule, ...] = ("greedy", "random")
    for rule in rules:
        assert all(
            one.selection_frequency is None for one in select(scores, Budget(parameters=0.5), rule=rule).removed
        )


@pytest.mark.parametrize("seed", range(5))
def test_random_removals_meet_the_budget_and_do_not_overlap(seed: int) -> None:
    scores = random_scores(seed)
    plans = [select(scores, Budget(parameters=0.9), rule="random", seed=seed) for _ in range(2)]
    assert plans[0] == plans[1]
    chosen = chosen_from(scores, plans[0])
    leaves = [leaf for one in chosen for leaf in one.candidate.leaves]
    assert len(leaves) == len(set(leaves))
    assert left(chosen, "parameters") <= 0.9
    others = {select(scores, Budget(parameters=0.9), rule="random", seed=other).removed for other in range(10)}
    assert len(others) > 1


def test_a_planned_removal_holds_the_removal_as_it_was_scored(scores: Scores) -> None:
    plan = select(scores, Budget(parameters=0.7))
    removals = {score.candidate.removal for score in scores.scores}
    assert all(planned.removal in removals for planned in plan.removed)
    assert all(
        (one.operator, one.modification) == (one.removal.operator, one.removal.modification) for one in plan.removed
    )


def test_an_unknown_rule_is_refused_with_the_accepted_ones(scores: Scores) -> None:
    with pytest.raises(BudgetError, match="accepted: knapsack, greedy, random"):
        select(scores, Budget(parameters=0.9), rule="dice")  # type: ignore[arg-type]


def test_native_plans_hold_whole_groups_and_say_what_the_best_plan_costs() -> None:
    scores = known(
        score("mid_block", 4.0, ("mid",), 200),
        score("up.0", 1.0, ("a",), 150),
        score("up.1", 2.0, ("b",), 150),
        score("down.0", 0.1, ("c",), 250),
    ).replace(native=(("mid_block",), ("up.0", "up.1")))
    plan = select(scores, Budget(parameters=0.75), native=True)
    assert [planned.operator for planned in plan.removed] == ["up.0", "up.1"]
    assert plan.provenance["cost"] == pytest.approx(5.0)
    assert plan.provenance["least_cost"] == pytest.approx(0.01)
    assert plan.predicted is not None
    assert plan.predicted.parameters == pytest.approx(0.7)
    assert all(planned.selection_frequency is not None for planned in plan.removed)
    with pytest.raises(BudgetError, match=r"leaves 0\.500"):
        select(scores, Budget(parameters=0.3), native=True)
    with pytest.raises(BudgetError, match="score again"):
        select(scores.replace(native=()), Budget(parameters=0.75), native=True)


def test_a_granularity_selects_among_what_is_as_coarse() -> None:
    levels = {"block": score("block", 3.0, ("a", "b"), 200), "branch": score("branch", 1.0, ("a",), 100)}
    scores = known(
        *(each.replace(candidate=each.candidate.replace(granularity=level)) for level, each in levels.items()),
        score("leaf", 0.1, ("c",), 100),
    )
    budget = Budget(parameters=0.9)
    chosen = {level: select(scores, budget, granularity=level).removed for level in GRANULARITIES}
    assert {level: [planned.operator for planned in removed] for level, removed in chosen.items()} == {
        "block": ["block"],
        "branch": ["branch"],
        "leaf": ["leaf"],
    }
    assert select(scores, budget).removed == chosen["leaf"]
    with pytest.raises(BudgetError, match="granularity='block': nothing that coarse was scored"):
        select(known(score("leaf", 0.1, ("c",), 100)), budget, granularity="block")
    with pytest.raises(BudgetError, match="accepted: block, branch, leaf"):
        select(scores, budget, granularity="blocks")  # type: ignore[arg-type]
