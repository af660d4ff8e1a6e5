"""The integer program behind a plan: the cheapest choice of items that saves enough. Arrays in, a choice out.

scipy's solver takes half a second to import, so it is imported where it is called.
"""

import contextlib
import functools
import math
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

TOLERANCE = 1e-9  # absolute, of what a choice must save
GAP = 1e-6  # relative distance of a choice's cost from the least one
TIME_LIMIT = 60.0  # seconds for one program; then the best choice so far is taken


class Knapsack:
    """Choose items of least total cost that save enough. Items that share a part exclude each other.

    Args:
        savings: [quantities, items] what each item saves of each quantity.
        needs: [quantities] what a choice must save.
        parts: [items] the parts that each item consists of.
        count: how many items a choice holds; any number if None.
    """

    def __init__(
        self, savings: Floats, needs: Floats, parts: Sequence[Collection[str]], count: int | None = None
    ) -> None:
        self.savings, self.needs, self.parts, self.count = savings, needs, parts, count

    def merged(self, members: Floats) -> "Knapsack":
        """The same choice among groups of items: [groups, items], 1 for the items that a group consists of."""
        parts = [{part for index in np.flatnonzero(row).tolist() for part in self.parts[index]} for row in members]
        return Knapsack(self.savings @ members.T, self.needs, parts, self.count)

    def __len__(self) -> int:
        return len(self.parts)

    def most_saved(self) -> list[float]:
        """The most that any choice saves, for each quantity alone."""
        return [float(row @ self._most(row)) for row in self.savings]

    def most_items(self) -> int:
        """The most items that any choice holds."""
        return round(float(self._most(np.ones(len(self))).sum()))

    def is_met(self, chosen: Floats) -> bool:
        """Whether a choice [items] saves enough and holds enough items."""
        counted = self.count is None or chosen.sum() >= self.count
        return bool(counted and np.all(self.savings @ chosen >= self.needs - TOLERANCE))

    def solve(self, costs: Floats, *, relaxed: bool = False) -> Floats | None:
        """[items] 1 for the items of the cheapest choice that saves enough, else 0; None if no choice does.

        Costs span twenty orders of magnitude, more than a solver tolerates. So items that cost more than a whole
        choice already known are forbidden, costs are scaled to that choice, and the program is solved again.

        Args:
            costs: [items], at least 0; infinity forbids an item.
            relaxed: allow fractions of items: a linear program, which takes a fraction of the time.
        """
        best, least = None, math.inf
        allowed = np.isfinite(costs)
        while True:
            finite = np.where(allowed, costs, 0.0)
            scale = min(least, finite.max(initial=0)) or 1.0
            chosen = self._program(finite / scale, self._demands, allowed, relaxed=relaxed)
            total = math.inf if chosen is None else float(finite @ chosen)
            if chosen is None or total >= least * (1 - GAP):
                return best
            best, least = chosen, total
            allowed = allowed & (costs <= least)

    def _most(self, values: Floats) -> Floats:
        """The choice of most value, whatever it saves."""
        chosen = self._program(-values, [], np.ones(len(self), dtype=bool))
        return np.zeros(len(self)) if chosen is None else chosen

    @functools.cached_property
    def _demands(self) -> list[Any]:
        from scipy.optimize import LinearConstraint

        demands = [LinearConstraint(self.savings, self.needs, np.inf)] if len(self.needs) else []
        if self.count is not None:
            demands.append(LinearConstraint(np.ones((1, len(self))), self.count, self.count))
        return demands

    @functools.cached_property
    def _exclusions(self) -> list[Any]:
        return [exclusions(self.parts)] if any(self.parts) else []

    def _program(
        self, costs: Floats, demands: list[Any], allowed: NDArray[np.bool_], *, relaxed: bool = False
    ) -> Floats | None:
        from scipy.optimize import Bounds, milp

        if not len(costs):
            return np.zeros(0) if not demands or self.is_met(np.zeros(0)) else None
        with _silent_stdout():
            result = milp(
                costs,
                integrality=np.full(len(costs), int(not relaxed)),
                bounds=Bounds(0, allowed.astype(np.float64)),
                constraints=[*demands, *self._exclusions],
                options={"time_limit": TIME_LIMIT, "mip_rel_gap": GAP},
            )
        if result.x is None:
            return None
        chosen: Floats = np.clip(result.x, 0, 1) if relaxed else np.round(result.x)
        return chosen


def exclusions(parts: Sequence[Collection[str]]) -> Any:
    """The constraint of an integer program that no two items share a part."""
    from scipy.optimize import LinearConstraint
    from scipy.sparse import csr_array

    rows = {part: row for row, part in enumerate(sorted({part for item in parts for part in item}))}
    row, column = zip(*((rows[part], item) for item, held in enumerate(parts) for part in held), strict=True)
    return LinearConstraint(csr_array((np.ones(len(row)), (row, column)), (len(rows), len(parts))), -np.inf, 1)


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """Hides what HiGHS prints to standard output whatever its options; that would spoil an answer in JSON."""
    try:
        kept = os.dup(1)
    except OSError:  # there is none
        yield
        return
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
