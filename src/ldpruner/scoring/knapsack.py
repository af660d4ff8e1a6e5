"""The choice of removals as an integer program: the least damage that meets a budget."""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import scipy.optimize
import scipy.sparse
from numpy.typing import NDArray

from ldpruner.budget import QUANTITIES, Budget, Predicted, Quantity
from ldpruner.errors import BudgetError
from ldpruner.operators.discovery import Candidate
from ldpruner.scoring.estimates import standard_error
from ldpruner.scoring.importance import Floats, cost, power
from ldpruner.scoring.results import Score, Scores

DRAWS = 8  # of damages from their errors
TOLERANCE = 1e-9  # of a kept fraction
GAP = 1e-6  # by which share of the least damage that of a plan may lie above
TIME_LIMIT = 60.0  # seconds for the integer program; the best plan found by then is taken


class Problem:
    """Minimise the sum of damages; meet the budget; no two removals share a leaf module."""

    def __init__(self, scores: Scores, removable: Sequence[Score], budget: Budget) -> None:
        self.scores, self.removable, self.budget = scores, list(removable), budget
        kept = budget.kept
        self.savings = np.array([[saving(scores, one, name) for one in self.removable] for name in kept])
        self.savings = self.savings.reshape(len(kept), len(self.removable))
        self.needs = np.array([1 - fraction for fraction in kept.values()])

    def is_met(self, chosen: Sequence[Score]) -> bool:
        """Whether removing these meets the budget."""
        left = predict(self.scores, chosen)
        counted = self.budget.operators is None or len(chosen) >= self.budget.operators
        return counted and all(getattr(left, name) <= kept + TOLERANCE for name, kept in self.budget.kept.items())

    def check_reachable(self) -> None:
        """Raises BudgetError where even the largest removal leaves too much."""
        for name, savings, need in zip(self.budget.kept, self.savings, self.needs, strict=True):
            best = self._program(-savings, [])
            least = 1 - float(savings @ best) if best is not None else 1.0
            if least > 1 - need + TOLERANCE:
                reachable = math.ceil(least * 1000) / 1000
                raise BudgetError(
                    f"budget {name}={1 - need:g} cannot be reached: removing all that can be removed leaves "
                    f"{least:.3f}; ask for {name}={reachable:g} or more",
                    least=reachable if name == "latency" else None,
                )
        if self.budget.operators is None:
            return
        most = self._program(-np.ones(len(self.removable)), [])
        count = 0 if most is None else int(most.sum())
        if self.budget.operators > count:
            raise BudgetError(f"budget {self.budget} cannot be reached: at most {count} can be removed together")

    @property
    def removal_costs(self) -> Floats:
        """[removable] what each removal adds to a plan's damage."""
        return np.array([cost(one.score, self.scores.metric) for one in self.removable])

    @property
    def errors(self) -> Floats:
        """[removable] standard errors of the logarithms of the damages, for samples of other seeds."""
        errors = [standard_error(one.score, one.interval) for one in self.removable]
        return power(self.scores.metric) * np.array(errors)

    def redrawn(self, errors: Floats, seed: int, known: Floats | None = None) -> Iterator[tuple[Floats, Floats]]:
        """Damages as they may as well be, within their errors, and the shares of removals that are best then.

        Args:
            errors: [removable] of the logarithms of the damages.
            seed: of what is drawn.
            known: shares that meet the budget; with them, the best are found in less time.
        """
        generator, removal_costs = np.random.default_rng(seed), self.removal_costs
        for _ in range(DRAWS):
            drawn = removal_costs * np.exp(errors * generator.normal(size=len(removal_costs)) - errors**2 / 2)
            yield drawn, self.relaxed(drawn, known)

    def solve(self, removal_costs: Floats) -> NDArray[np.bool_]:
        """[removable] which removals meet the budget with the least damage."""
        return self._least(removal_costs, None, whole=True) > 0

    def relaxed(self, removal_costs: Floats, known: Floats | None = None) -> Floats:
        """[removable] the share of each that meets the budget with the least damage, if parts of a removal can be had.

        Few are neither 0 nor 1, and a linear program is solved many times faster.

        Args:
            damages: [removable] of each.
            known: shares that meet the budget.
        """
        return self._least(removal_costs, known, whole=False)

    def _least(self, removal_costs: Floats, known: Floats | None, *, whole: bool) -> Floats:
        """What does the least damage.

        Damages span twenty orders of magnitude, more than a solver's tolerances. So what does more damage alone
        than a plan already found does in all is forbidden, the rest is scaled to that plan, and solved again.
        """
        best = known
        bound = math.inf if best is None else float(removal_costs @ best)
        allowed = removal_costs <= bound
        while True:
            scale = min(bound, removal_costs[allowed].max(initial=0)) or 1.0
            chosen = self._program(np.where(allowed, removal_costs, 0) / scale, self._demands(), allowed, whole=whole)
            total = math.inf if chosen is None else float(removal_costs @ chosen)
            if chosen is None or total >= bound * (1 - GAP):
                break
            best, bound = chosen, total
            allowed = removal_costs <= bound
        if best is None:
            raise BudgetError(f"budget {self.budget} cannot be reached: its parts exclude each other; ask for less")
        return best

    def _demands(self) -> list[object]:
        demands: list[object] = []
        if len(self.needs):
            demands.append(scipy.optimize.LinearConstraint(self.savings, self.needs, np.inf))
        if self.budget.operators is not None:
            count = self.budget.operators
            demands.append(scipy.optimize.LinearConstraint(np.ones((1, len(self.removable))), count, count))
        return demands

    def _program(
        self,
        cost: Floats,
        constraints: list[object],
        allowed: NDArray[np.bool_] | None = None,
        *,
        whole: bool = True,
    ) -> Floats | None:
        """Solves for the choice of least cost, of wholes or of shares; None if there is none."""
        if not len(cost):
            return np.zeros(0)
        upper = np.ones(len(cost)) if allowed is None else allowed.astype(np.float64)
        with _silent_stdout():
            result = scipy.optimize.milp(
                cost,
                integrality=np.full(len(cost), int(whole)),
                bounds=scipy.optimize.Bounds(0, upper),
                constraints=[*constraints, *exclusions([one.candidate for one in self.removable])],
                options={"time_limit": TIME_LIMIT, "mip_rel_gap": GAP},
            )
        if result.x is None:
            return None
        found: Floats = np.round(result.x) if whole else np.clip(result.x, 0, 1)
        return found


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """HiGHS prints some lines to standard output whatever it is told, where they would spoil an answer in JSON."""
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


def exclusions(candidates: Sequence[Candidate]) -> list[scipy.optimize.LinearConstraint]:
    """For an integer program over candidates: at most one removal for each leaf module."""
    leaves = sorted({leaf for one in candidates for leaf in one.leaves})
    rows = {leaf: row for row, leaf in enumerate(leaves)}
    places = [(rows[leaf], column) for column, one in enumerate(candidates) for leaf in one.leaves]
    if not places:
        return []
    row, column = zip(*places, strict=True)
    matrix = scipy.sparse.csr_array((np.ones(len(places)), (row, column)), (len(leaves), len(candidates)))
    return [scipy.optimize.LinearConstraint(matrix, -np.inf, 1)]


def predict(scores: Scores, chosen: Iterable[Score]) -> Predicted:
    """What is left of the original once some operators are removed."""
    saved = dict.fromkeys(QUANTITIES, 0.0)
    for score in chosen:
        for quantity in QUANTITIES:
            saved[quantity] += saving(scores, score, quantity)
    return Predicted(**{quantity: 1 - fraction for quantity, fraction in saved.items()})


def saving(scores: Scores, score: Score, quantity: Quantity) -> float:
    """The fraction of a quantity that a removal saves."""
    if quantity == "latency":
        return score.savings.latency_ms / scores.costs.latency_ms
    saved, total = getattr(score.savings, quantity), getattr(scores.costs, quantity)
    return float(saved / total)
