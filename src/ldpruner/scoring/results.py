"""What scoring finds out, and all that selection needs to know."""

import math

from ldpruner.operators.discovery import Candidate
from ldpruner.pipelines.fingerprints import Architecture
from ldpruner.pipelines.probe import Probe
from ldpruner.profiling.costs import Costs
from ldpruner.scoring.importance import Metric
from ldpruner.values import Value


class Savings(Value):
    """What a removal saves of drawing one sample's latents.

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


class Score(Value):
    """The importance of one modification of one operator.

    Attributes:
        score: how far the latents moved; infinity if it cannot be removed, or is not known.
        interval: of the score, where one is known.
        samples: how many samples were drawn; of none, the score is what looks at single steps tell.
        savings: what the removal saves.
        candidate: the removal itself.
        failure: why it cannot be removed.
        stopped: whether drawing was stopped on the way, as the latents were far off; then the score is at least this.
    """

    operator: str
    kind: str
    modification: str
    score: float
    interval: tuple[float, float] | None = None
    samples: int
    savings: Savings
    candidate: Candidate
    failure: str | None = None
    stopped: bool = False

    @property
    def is_known(self) -> bool:
        """Whether it was tried, if in vain: a race leaves out what saves too little to matter."""
        return self.samples > 0 or self.failure is not None or math.isfinite(self.score)


class Scores(Value):
    """All that selection needs to know.

    Attributes:
        component: the denoiser's name in the pipeline.
        architecture: of the denoiser.
        probe: on which latents the scores were measured.
        metric: which score.
        costs: of the untouched pipeline.
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


class Forecast(Value):
    """What scoring will take, as a race that is settled at once and as one that uses up what it may.

    Attributes:
        operators, modifications: how many.
        denoiser_calls: least and most, counted for each sample.
        seconds: least and most, sample by sample on this device; batches may be faster.
    """

    operators: int
    modifications: int
    denoiser_calls: tuple[int, int]
    seconds: tuple[float, float]
