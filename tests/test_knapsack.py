"""The knapsack against brute force, on arrays alone."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

import ldpruner.knapsack
from ldpruner.knapsack import Floats, Knapsack


def random_knapsack(seed: int, count: int | None = None) -> tuple[Knapsack, Floats]:
    """Nine items of up to three of six parts, two quantities; and costs over many orders of magnitude."""
    random = np.random.default_rng(seed)
    parts = [tuple(random.choice(list("abcdef"), size=random.integers(1, 4), replace=False)) for _ in range(9)]
    savings = random.uniform(0, 0.5, size=(2, 9))
    return Knapsack(savings, np.array([0.4, 0.3]), parts, count), 10 ** random.uniform(-12, 6, size=9)


def choices(knapsack: Knapsack) -> list[Floats]:
    """All choices whose items share no part."""
    found = []
    for bits in itertools.product((0.0, 1.0), repeat=len(knapsack)):
        held = [part for bit, parts in zip(bits, knapsack.parts, strict=True) if bit for part in parts]
        if len(held) == len(set(held)):
            found.append(np.array(bits))
    return found


def brute_force(knapsack: Knapsack, costs: Floats) -> float | None:
    met = [chosen for chosen in choices(knapsack) if np.all(knapsack.savings @ chosen >= knapsack.needs)]
    met = [chosen for chosen in met if knapsack.count is None or chosen.sum() == knapsack.count]
    return min((float(costs @ chosen) for chosen in met), default=None)


@pytest.mark.parametrize("count", [None, 2])
@pytest.mark.parametrize("seed", range(12))
def test_the_choice_is_the_cheapest_of_all(seed: int, count: int | None) -> None:
    knapsack, costs = random_knapsack(seed, count)
    expected, chosen = brute_force(knapsack, costs), knapsack.solve(costs)
    if expected is None:
        assert chosen is None
        return
    assert chosen is not None
    assert float(costs @ chosen) == pytest.approx(expected, rel=1e-5)
    assert knapsack.is_met(chosen)
    relaxed = knapsack.solve(costs, relaxed=True)
    assert relaxed is not None
    assert float(costs @ relaxed) <= expected * (1 + 1e-6)
    assert ((relaxed >= 0) & (relaxed <= 1)).all()


def test_most_of_these_have_a_choice() -> None:
    solved = [brute_force(*random_knapsack(seed)) for seed in range(12)]
    assert sum(one is not None for one in solved) > 6


@pytest.mark.parametrize("seed", range(4))
def test_the_most_that_can_be_saved_and_held_is_that_of_all_choices(seed: int) -> None:
    knapsack, _ = random_knapsack(seed)
    everything = np.array(choices(knapsack))
    np.testing.assert_allclose(knapsack.most_saved(), (everything @ knapsack.savings.T).max(axis=0))
    assert knapsack.most_items() == everything.sum(axis=1).max()


def test_an_infinite_cost_forbids_an_item() -> None:
    knapsack = Knapsack(np.array([[0.5, 0.5]]), np.array([0.4]), [("a",), ("b",)])
    chosen = knapsack.solve(np.array([np.inf, 7.0]))
    assert chosen is not None
    assert chosen.tolist() == [0, 1]
    assert knapsack.solve(np.array([np.inf, np.inf])) is None


def test_without_items_or_parts_there_is_an_answer() -> None:
    empty = Knapsack(np.zeros((1, 0)), np.array([0.4]), [])
    assert empty.solve(np.zeros(0)) is None
    assert (empty.most_saved(), empty.most_items()) == ([0.0], 0)
    free = Knapsack(np.array([[0.3, 0.3]]), np.array([0.5]), [(), ()])
    chosen = free.solve(np.ones(2))
    assert chosen is not None
    assert chosen.tolist() == [1, 1]


def test_it_knows_nothing_of_the_package_and_imports_the_solver_late() -> None:
    script = (
        "import importlib.util, sys;"
        f"spec = importlib.util.spec_from_file_location('alone', {ldpruner.knapsack.__file__!r});"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec));"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ('ldpruner', 'scipy')))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_groups_of_items_are_chosen_together() -> None:
    knapsack = Knapsack(np.array([[0.1, 0.2, 0.4]]), np.array([0.3]), [("a",), ("b",), ("c",)])
    members = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    merged = knapsack.merged(members)
    chosen = merged.solve(members @ np.array([1.0, 1.0, 3.0]))
    assert chosen is not None
    assert (chosen @ members).tolist() == [1, 1, 0]
    assert merged.parts == [{"a", "b"}, {"c"}]
