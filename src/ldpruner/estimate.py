"""What a run takes, counted on the meta device before anything runs: denoiser calls, TFLOP, hours."""

from collections.abc import Sequence

from diffusers import DiffusionPipeline

from ldpruner.finetuning.settings import Training
from ldpruner.operators.discovery import denoiser_macs, matching, operators_of
from ldpruner.operators.tracing import trace
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pipelines.probe import Probe
from ldpruner.scoring.adaptive import allowed_samples
from ldpruner.values import Value

TFLOPS = 100.0  # sustained; a data-centre GPU of 2020 reaches a third of this in plain training code
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
        rows: rows of a call for one sample; 2 under classifier-free guidance.
        operators, modifications: how many can be modified, and in how many ways in all.
    """

    pipeline: str
    component: str
    parameters: int
    macs: int
    rows: int
    operators: int
    modifications: int


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
    ignore: Sequence[str] = (),
    targets: Sequence[str] = (),
) -> Denoising:
    """Counts the operators and the cost of a pipeline's denoiser; no weights are needed.

    Raises:
        DenoiserNotFound: the pipeline cannot be run.
    """
    probe.check(pipeline)
    denoiser = find_denoiser(pipeline, component, probe.arguments(pipeline, [0]))
    flow = trace(denoiser)
    operators = matching(operators_of(denoiser, flow), ignore=ignore, targets=targets)
    return Denoising(
        pipeline=type(pipeline).__name__,
        component=denoiser.component,
        parameters=count_parameters(denoiser.module),
        macs=denoiser_macs(denoiser, flow),
        rows=denoiser.rows,
        operators=len(operators),
        modifications=sum(len(operator.candidates) for operator in operators),
    )


def scoring_stage(denoising: Denoising, probe: Probe, budgets: int | None, tflops: float = TFLOPS) -> Stage:
    """The most that scoring takes for so many budgets; None scores everything on all samples."""
    everything = (1 + denoising.modifications) * probe.samples
    samples = everything if budgets is None else allowed_samples(probe.samples, denoising.modifications, budgets)
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
