"""Choosing what to remove: scores, savings and a budget make a plan.

The default is a knapsack (0/1 integer program) of least damage. The paper's own rule, lowest score first, is
`rule="lowest"`.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
import scipy.optimize
import scipy.sparse
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from ldpruner.errors import BudgetError, PlanMismatch, StorageError, one_line
from ldpruner.fingerprints import Architecture
from ldpruner.importance import Floats, damage
from ldpruner.operators import Candidate, Removal
from ldpruner.scores import Score, Scores
from ldpruner.values import Value

Quantity: TypeAlias = Literal["latency", "parameters", "macs", "memory"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
Rule: TypeAlias = Literal["knapsack", "lowest"]
RULES: tuple[Rule, ...] = get_args(Rule)
TOLERANCE = 1e-9  # of a kept fraction
TIME_LIMIT = 60.0  # seconds for the integer program; the best plan found by then is taken


class Budget(Value):
    """What may be left: of each quantity the kept fraction, above 0 and at most 1.

    Attributes:
        latency: of drawing one sample's latents.
        parameters: of the denoiser.
        macs: of one denoiser call.
        memory: of the peak while drawing them.
        operators: how many operators to remove, the paper's own control.
    """

    latency: float | None = None
    parameters: float | None = None
    macs: float | None = None
    memory: float | None = None
    operators: int | None = None

    def __init__(self, **quantities: float | None) -> None:
        try:
            super().__init__(**quantities)
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(str(part) for part in problem["loc"])
            raise BudgetError(f"budget {field}={problem['input']!r}: {problem['msg']}") from error

    @model_validator(mode="after")
    def _check(self) -> "Budget":
        for name, kept in self.kept.items():
            if not 0 < kept <= 1:
                raise BudgetError(
                    f"budget {name}={kept:g} is outside (0, 1]; it is the fraction to keep, such as {name}=0.65"
                )
        if self.operators is not None and self.operators < 1:
            raise BudgetError(f"budget operators={self.operators} is below 1; it is how many to remove")
        if not self.kept and self.operators is None:
            raise BudgetError(f"an empty budget; give one of {', '.join(QUANTITIES)}, operators")
        return self

    @property
    def kept(self) -> dict[Quantity, float]:
        """The fractions that were asked for."""
        fractions = {name: getattr(self, name) for name in QUANTITIES}
        return {name: float(kept) for name, kept in fractions.items() if kept is not None}

    def __str__(self) -> str:
        return " ".join(f"{name}={value:g}" for name, value in self.model_dump(exclude_none=True).items())


class Predicted(Value):
    """What a plan leaves of the original, as kept fractions."""

    latency: float
    parameters: float
    macs: float
    memory: float


class Choice(Removal):
    """A removal that a plan makes, with the score for which it was chosen."""

    score: float = 0.0


class Plan(Value):
    """What to remove from a denoiser, and where the choice came from.

    Attributes:
        removed: the removals, in the order in which the operators run.
        component: the denoiser's name in the pipeline; None for the one that the pipeline calls.
        architecture: of the denoiser that it was made for; None applies wherever the operators exist.
        budget, rule: what was asked for.
        predicted: what is left.
        provenance: the probe, the metric and the denoiser calls of the scores.
    """

    removed: tuple[Choice, ...]
    component: str | None = None
    architecture: Architecture | None = None
    budget: Budget | None = None
    rule: Rule | None = None
    predicted: Predicted | None = None
    provenance: dict[str, object] = Field(default_factory=dict)

    def write(self, path: Path | str) -> None:
        """Writes the plan as readable JSON."""
        try:
            Path(path).write_text(self.model_dump_json(indent=2, exclude_none=True) + "\n", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error

    @classmethod
    def read(cls, path: Path | str) -> "Plan":
        """Reads a plan that `write` wrote."""
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise PlanMismatch(f"no plan at {path}: {error.strerror}; make one with 'ldpruner select'") from error
        except ValueError as error:
            raise PlanMismatch(f"{path} is not a plan: {one_line(error)}") from error


def select(scores: Scores, budget: Budget, *, rule: Rule = "knapsack") -> Plan:
    """Chooses what to remove so that a budget is met with the least damage.

    Args:
        scores: of `score_operators`.
        budget: what may be left.
        rule: `knapsack` for the least damage in all, `lowest` for lowest score first, as in the paper.

    Raises:
        BudgetError: the budget cannot be reached; the message says what can.
    """
    removable = [score for score in scores.scores if math.isfinite(score.score)]
    problem = _Problem(scores, removable, budget)
    problem.check_reachable()
    chosen = _lowest_first(problem) if rule == "lowest" else problem.solve()
    return Plan(
        removed=tuple(Choice(**score.candidate.removal.model_dump(), score=score.score) for score in chosen),
        component=scores.component,
        architecture=scores.architecture,
        budget=budget,
        rule=rule,
        predicted=predict(scores, chosen),
        provenance={
            "probe": scores.probe.model_dump(mode="json", exclude_none=True),
            "metric": scores.metric,
            "rounds": 1,
            "denoiser_calls": scores.denoiser_calls,
        },
    )


def joined(plans: Sequence[Plan]) -> Plan:
    """One plan for the original from several that were made one after another, each for what the last one left.

    A removal around earlier ones takes their place.
    """
    kept: list[Choice] = []
    for choice in (one for plan in plans for one in plan.removed):
        inner = [
            one for one in kept if any(_is_inside(one.operator, outer) for outer in (choice.operator, *choice.also))
        ]
        left = [name for one in inner for name in one.also if not _is_inside(name, choice.operator)]
        kept = [one for one in kept if one not in inner]
        kept.append(choice.model_copy(update={"also": tuple(dict.fromkeys((*choice.also, *left)))}))
    predicted = [plan.predicted for plan in plans if plan.predicted is not None]
    left_of = {name: math.prod(getattr(one, name) for one in predicted) for name in QUANTITIES}
    known = {"removed": tuple(kept), "predicted": Predicted(**left_of)}
    return plans[0].model_copy(update={**known, "provenance": plans[0].provenance | {"rounds": len(plans)}})


def _is_inside(name: str, outer: str) -> bool:
    return f"{name}.".startswith(f"{outer}.")


def predict(scores: Scores, chosen: Iterable[Score]) -> Predicted:
    """What is left of the original once some operators are removed."""
    saved = dict.fromkeys(QUANTITIES, 0.0)
    for score in chosen:
        for quantity in QUANTITIES:
            saved[quantity] += _saving(scores, score, quantity)
    return Predicted(**{quantity: 1 - fraction for quantity, fraction in saved.items()})


def _saving(scores: Scores, score: Score, quantity: Quantity) -> float:
    """The fraction of a quantity that a removal saves."""
    if quantity == "latency":
        return score.saves.latency_ms / scores.costs.latency_ms
    saved, total = getattr(score.saves, quantity), getattr(scores.costs, quantity)
    return float(saved / total)


class _Problem:
    """Minimise the sum of damages; meet the budget; no two removals share a leaf module."""

    def __init__(self, scores: Scores, removable: Sequence[Score], budget: Budget) -> None:
        self.scores, self.removable, self.budget = scores, list(removable), budget
        kept = budget.kept
        self.savings = np.array([[_saving(scores, one, name) for one in self.removable] for name in kept])
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
                    f"{least:.3f}; ask for {name}={reachable:g} or more"
                )
        most = self._program(-np.ones(len(self.removable)), [])
        count = 0 if most is None else int(most.sum())
        if self.budget.operators is not None and self.budget.operators > count:
            raise BudgetError(f"budget {self.budget} cannot be reached: at most {count} can be removed together")

    def solve(self) -> list[Score]:
        """The removals of least damage that meet the budget.

        Damages span twenty orders of magnitude, more than a solver's tolerances. So what does more damage alone
        than a plan already found does in all is forbidden, the rest is scaled to that plan, and solved again.
        """
        damages = np.array([damage(one.score, self.scores.metric) for one in self.removable])
        allowed, bound = np.ones(len(damages), dtype=bool), math.inf
        best: Floats | None = None
        while True:
            scale = min(bound, damages[allowed].max(initial=0)) or 1.0
            chosen = self._program(np.where(allowed, damages, 0) / scale, self._demands(), allowed)
            total = math.inf if chosen is None else float(damages @ chosen)
            if chosen is None or total >= bound:
                break
            best, bound = chosen, total
            allowed = damages <= bound
        if best is None:
            raise BudgetError(f"budget {self.budget} cannot be reached: its parts exclude each other; ask for less")
        return [one for one, taken in zip(self.removable, best, strict=True) if taken]

    def _demands(self) -> list[object]:
        demands: list[object] = []
        if len(self.needs):
            demands.append(scipy.optimize.LinearConstraint(self.savings, self.needs, np.inf))
        if self.budget.operators is not None:
            count = self.budget.operators
            demands.append(scipy.optimize.LinearConstraint(np.ones((1, len(self.removable))), count, count))
        return demands

    def _program(
        self, cost: Floats, constraints: list[object], allowed: NDArray[np.bool_] | None = None
    ) -> Floats | None:
        """Solves for the 0/1 choice of least cost; None if there is none."""
        if not len(cost):
            return np.zeros(0)
        upper = np.ones(len(cost)) if allowed is None else allowed.astype(np.float64)
        result = scipy.optimize.milp(
            cost,
            integrality=np.ones(len(cost)),
            bounds=scipy.optimize.Bounds(0, upper),
            constraints=[*constraints, *exclusions([one.candidate for one in self.removable])],
            options={"time_limit": TIME_LIMIT, "mip_rel_gap": 1e-6},
        )
        return None if result.x is None else np.round(result.x)


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


def _lowest_first(problem: _Problem) -> list[Score]:
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
        raise BudgetError(f"budget {problem.budget} cannot be reached lowest first; use the knapsack")
    order = {id(one): place for place, one in enumerate(problem.removable)}
    return sorted(chosen, key=lambda one: order[id(one)])
