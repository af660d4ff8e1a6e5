"""What scoring finds out, and all that selection needs to know."""

import math
from collections.abc import Sequence

import numpy as np

from ldpruner.budget import Budget, Quantity
from ldpruner.knapsack import Knapsack
from ldpruner.operators.discovery import Candidate
from ldpruner.pipelines.fingerprints import Architecture
from ldpruner.pipelines.probe import Probe
from ldpruner.profiling.costs import Costs
from ldpruner.scoring.importance import Floats, Metric, cost
from ldpruner.values import Value

NORMAL = 1.96  # standard errors on both sides of a 95 % interval
ADDITIVE = ((0.0, 0.0), (1.0, 1.0))  # the latency curve of savings that simply add up


class Savings(Value):
    """What a removal saves of one call of the pipeline.

    Attributes:
        parameters: weights of the denoiser.
        macs: multiply-accumulates of one denoiser call.
        latency_ms: time, over all steps, if nothing else is removed.
        memory: bytes of weights.
    """

    parameters: int
    macs: int
    latency_ms: float
    memory: int

    def fraction(self, costs: Costs, quantity: Quantity) -> float:
        """The saved fraction of a quantity."""
        name = "latency_ms" if quantity == "latency" else quantity
        return float(getattr(self, name) / getattr(costs, name))


class Score(Value):
    """The importance of one modification of one operator.

    Attributes:
        score: how far the latents moved; infinity if it cannot be removed, or was not sampled.
        standard_error: of the score, relative, for samples of other seeds; None where there is no score.
        samples: how many samples it is a score of.
        savings: what the removal saves.
        candidate: the removal itself.
        failure: why it cannot be removed.
    """

    operator: str
    module_type: str
    modification: str
    score: float
    standard_error: float | None = None
    samples: int
    savings: Savings
    candidate: Candidate
    failure: str | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval: scores are spread like their logarithms."""
        if self.standard_error is None:
            return None
        factor = math.exp(NORMAL * self.standard_error)
        return self.score / factor, self.score * factor

    @property
    def is_known(self) -> bool:
        """Whether it was tried: adaptive scoring leaves out what saves too little to matter."""
        return self.samples > 0 or self.failure is not None


class Scores(Value):
    """All that selection needs to know.

    Attributes:
        component: the denoiser's name in the pipeline.
        architecture: of the denoiser.
        probe: on which latents the scores were measured.
        metric: which score.
        costs: of the original pipeline.
        denoiser_calls: what the scores took, counted for each sample.
        rank_stability: how much alike other seeds would rank (see `estimates.rank_stability`); None if not known.
        latency_curve: points (sum, saved): the summed latency savings of several removals, and what they save together
            where that was measured, as fractions of the latency; from (0, 0) to (1, 1).
        native: groups of operators that the denoiser's class can express the removal of (see `native_groups`).
        scores: one for each modification.
    """

    component: str
    architecture: Architecture
    probe: Probe
    metric: Metric
    costs: Costs
    denoiser_calls: int
    scores: tuple[Score, ...]
    rank_stability: float | None = None
    latency_curve: tuple[tuple[float, float], ...] = ADDITIVE
    native: tuple[tuple[str, ...], ...] = ()

    def saved_together(self, quantity: Quantity, summed: float) -> float:
        """The fraction of a quantity that several removals save, whose own savings have this sum."""
        curve = np.array(self.latency_curve if quantity == "latency" else ADDITIVE)
        return float(np.interp(summed, curve[:, 0], curve[:, 1]))

    def _summed(self, quantity: Quantity, saved: float) -> float:
        """The inverse of `saved_together`."""
        curve = np.array(self.latency_curve if quantity == "latency" else ADDITIVE)
        return float(np.interp(saved, curve[:, 1], curve[:, 0]))

    def removal_costs(self, removable: Sequence[Score]) -> Floats:
        """[removable] what each removal adds to the cost of a plan."""
        return np.array([cost(score.score, self.metric) for score in removable])

    def knapsack(self, removable: Sequence[Score], budget: Budget) -> Knapsack:
        """The choice among some removals that meets a budget; removals that share a leaf module exclude each other."""
        savings = [[score.savings.fraction(self.costs, name) for score in removable] for name in budget.kept]
        return Knapsack(
            savings=np.array(savings).reshape(len(budget.kept), len(removable)),
            needs=np.array([self._summed(name, 1 - fraction) for name, fraction in budget.kept.items()]),
            parts=[score.candidate.leaves for score in removable],
            count=budget.operators,
        )
