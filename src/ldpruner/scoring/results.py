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


class Savings(Value):
    """What a removal saves of sampling one latent.

    Attributes:
        parameters: weights of the denoiser.
        macs: multiply-accumulates of one denoiser call.
        latency_ms: time, over all steps.
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

    def removal_costs(self, removable: Sequence[Score]) -> Floats:
        """[removable] what each removal adds to the cost of a plan."""
        return np.array([cost(score.score, self.metric) for score in removable])

    def knapsack(self, removable: Sequence[Score], budget: Budget) -> Knapsack:
        """The choice among some removals that meets a budget; removals that share a leaf module exclude each other."""
        savings = [[score.savings.fraction(self.costs, name) for score in removable] for name in budget.kept]
        return Knapsack(
            savings=np.array(savings).reshape(len(budget.kept), len(removable)),
            needs=np.array([1 - fraction for fraction in budget.kept.values()]),
            parts=[score.candidate.leaves for score in removable],
            count=budget.operators,
        )
