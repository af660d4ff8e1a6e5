"""What a run takes, counted on the meta device before anything runs: denoiser calls, TFLOP, hours."""

from collections import Counter
from collections.abc import Sequence

from diffusers import DiffusionPipeline

from ldpruner.finetuning.settings import Training
from ldpruner.operators.choosing import GRANULARITIES, at_granularity, choose_operators, default_granularity, up_to
from ldpruner.operators.discovery import Granularity, denoiser_macs
from ldpruner.operators.tracing import trace
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pipelines.probe import Probe
from ldpruner.scoring.adaptive import allowed_samples
from ldpruner.values import Value

TFLOPS = 100.0  # sustained, where no GPU is named
# Of dense products in half precision that accumulate in single precision, in TFLOP/s, by the makers' data sheets.
PEAK_TFLOPS = {
    "A10": 125.0,
    "A100": 312.0,
    "H100": 989.0,
    "H200": 989.0,
    "L4": 121.0,
    "L40S": 362.0,
    "RTX 3090": 71.0,
    "RTX 4090": 165.0,
}
# SDXL on an A100 in bfloat16 reaches 39 %: 30 steps in 3.31 s (diffusers' documentation, "Accelerate inference").
UTILISATION = 0.4
NOTE = (
    "an upper bound by arithmetic alone: 2 FLOP a MAC at a sustained {tflops:g} TFLOP/s on one GPU; "
    "decoding, encoding, validation and timing are not counted"
)


class Denoising(Value):
    """What is pruned, and what one call of it costs.

    Attributes:
        pipeline, component: their names.
        parameters: of the denoiser.
        macs: multiply-accumulates of one call on one row of a batch.
        rows: rows of all calls in one step of one sample; 2 under classifier-free guidance.
        granularity: of the operators that are scored.
        operators, modifications: how many can be modified, and in how many ways in all.
        levels: how many modifications there are at each granularity.
    """

    pipeline: str
    component: str
    parameters: int
    macs: int
    rows: int
    granularity: Granularity
    operators: int
    modifications: int
    levels: dict[Granularity, int]


class Stage(Value):
    """What one stage of a run takes.

    Attributes:
        calls: denoiser calls, each on one row of a batch.
        macs: their multiply-accumulates, those of gradients included.
        hours: on one GPU.
    """

    calls: int
    macs: int
    hours: float

    def __add__(self, other: "Stage") -> "Stage":
        return Stage(calls=self.calls + other.calls, macs=self.macs + other.macs, hours=self.hours + other.hours)


def count_denoising(
    pipeline: DiffusionPipeline,
    probe: Probe,
    *,
    component: str | None = None,
    granularity: Granularity | None = None,
    ignore: Sequence[str] = (),
    targets: Sequence[str] = (),
) -> Denoising:
    """Counts the operators and the cost of a pipeline's denoiser; no weights are needed.

    Raises:
        DenoiserNotFound: the pipeline cannot be run.
        NothingToRemove: there are no such operators.
    """
    probe.check(pipeline)
    denoiser = find_denoiser(pipeline, component, probe.arguments(pipeline, [0]))
    flow = trace(denoiser)
    granularity = granularity or default_granularity(denoiser.module)
    everything = choose_operators(denoiser, flow, granularity="leaf", ignore=ignore, targets=targets)
    operators = at_granularity(everything, granularity)
    counts = Counter(candidate.granularity for operator in everything for candidate in operator.candidates)
    return Denoising(
        pipeline=type(pipeline).__name__,
        component=denoiser.component,
        parameters=count_parameters(denoiser.module),
        macs=denoiser_macs(denoiser, flow),
        rows=denoiser.rows_per_step,
        granularity=granularity,
        operators=len(operators),
        modifications=sum(len(operator.candidates) for operator in operators),
        levels={level: sum(counts[coarse] for coarse in up_to(level)) for level in GRANULARITIES},
    )


def scoring_stage(
    denoising: Denoising,
    probe: Probe,
    budgets: int | None,
    tflops: float = TFLOPS,
    granularity: Granularity | None = None,
) -> Stage:
    """The most that scoring takes for so many budgets; None scores everything on all samples.

    `granularity` is another than the denoising's own.
    """
    modifications = denoising.levels[granularity or denoising.granularity]
    everything = (1 + modifications) * probe.samples
    samples = everything if budgets is None else allowed_samples(probe.samples, modifications, budgets)
    calls = samples * probe.steps * denoising.rows
    return _stage(denoising, calls, calls, tflops)


def finetuning_stage(
    denoising: Denoising, probe: Probe, training: Training, *, examples: int, kept: float, tflops: float = TFLOPS
) -> Stage:
    """What finetuning takes, on so many examples that the original samples.

    `kept` is what a call of the pruned denoiser costs of the original's. A gradient costs two such calls, and gradient
    checkpointing one more.
    """
    samples = examples * probe.steps * denoising.rows
    rows = training.max_train_steps * training.train_batch_size
    teacher, guide = int(training.needs_teacher), int(training.autoguidance_scale > 0)
    student = kept * (4 if training.gradient_checkpointing else 3)
    calls = samples + rows * (1 + teacher + guide)
    return _stage(denoising, calls, samples + rows * (teacher + student + guide * kept), tflops)


def evaluation_stage(
    denoising: Denoising, probe: Probe, samples: int, *, kept: float, tflops: float = TFLOPS
) -> Stage:
    """What evaluating takes: the original samples twice, the pruned pipeline once."""
    calls = samples * probe.steps * denoising.rows
    return _stage(denoising, 3 * calls, (2 + kept) * calls, tflops)


def _stage(denoising: Denoising, calls: int, full_calls: float, tflops: float) -> Stage:
    """A stage of some calls, which cost as much as so many calls of the original."""
    macs = full_calls * denoising.macs
    return Stage(calls=calls, macs=round(macs), hours=2 * macs / (tflops * 1e12) / 3600)
