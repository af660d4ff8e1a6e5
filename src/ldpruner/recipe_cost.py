"""What a recipe takes, counted before anything runs."""

from diffusers import DiffusionPipeline

from ldpruner.budget import Budget
from ldpruner.operators.discovery import denoiser_macs, operators_of
from ldpruner.operators.tracing import trace
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.recipes import Recipe, RecipeError
from ldpruner.values import Value

TFLOPS = 100.0  # sustained; a data-centre GPU of 2020 reaches a third of this in plain training code


class Stage(Value):
    """What one part of a recipe takes.

    Attributes:
        calls: denoiser calls, each on one row of a batch.
        macs: their multiply-accumulates, those of gradients included.
        hours: on one GPU.
    """

    calls: int
    macs: int
    hours: float


class Estimate(Value):
    """What a recipe takes, by arithmetic alone.

    Attributes:
        pipeline, component: what is pruned.
        parameters, macs: of the denoiser, and of one call of it on one row.
        rows: of a call for one sample; 2 under classifier-free guidance.
        operators, modifications: how many can be modified, and in how many ways in all.
        tflops: what the GPU sustains, in TFLOP/s; 2 FLOP to a multiply-accumulate.
        stages: scoring, finetuning, evaluation, and the total.
    """

    pipeline: str
    component: str
    parameters: int
    macs: int
    rows: int
    operators: int
    modifications: int
    tflops: float
    stages: dict[str, Stage]


def estimate(recipe: Recipe, pipeline: DiffusionPipeline, *, tflops: float = TFLOPS) -> Estimate:
    """Counts the denoiser calls of a recipe, and the hours that they take; nothing is drawn.

    What is pruned is taken to cost what the budget keeps of the MACs or the latency. In training, a gradient costs two
    calls, and checkpointing one more. Left out: decoding and encoding, looks at held-out examples, timing.

    Args:
        recipe: what would run.
        pipeline: its model; no weights are needed.
        tflops: what the GPU sustains, in TFLOP/s.

    Raises:
        DenoiserNotFound: the pipeline cannot be run.
        RecipeError: the recipe does not fit the pipeline.
    """
    call = recipe.probe.without_file().arguments(pipeline, [0])
    if recipe.evaluation.clip is not None and "prompt" not in call:
        raise RecipeError(f"evaluation.clip={recipe.evaluation.clip!r}: {type(pipeline).__name__} takes no prompts")
    denoiser = find_denoiser(pipeline, recipe.component, call)
    flow = trace(denoiser)
    operators, macs = operators_of(denoiser, flow), denoiser_macs(denoiser, flow)
    modifications = sum(len(one.candidates) for one in operators)
    works = {
        "scoring": _scoring(recipe, modifications, denoiser.rows),
        "finetuning": _finetuning(recipe, denoiser.rows),
        "evaluation": _evaluation(recipe, denoiser.rows),
    }
    works["total"] = (sum(calls for calls, _ in works.values()), sum(full for _, full in works.values()))
    return Estimate(
        pipeline=type(pipeline).__name__,
        component=denoiser.component,
        parameters=count_parameters(denoiser.module),
        macs=macs,
        rows=denoiser.rows,
        operators=len(operators),
        modifications=modifications,
        tflops=tflops,
        stages={name: _stage(calls, full * macs, tflops) for name, (calls, full) in works.items()},
    )


def _stage(calls: int, macs: float, tflops: float) -> Stage:
    return Stage(calls=calls, macs=round(macs), hours=2 * macs / (tflops * 1e12) / 3600)


# Each gives the calls, and the calls of the original that would cost as much.


def _scoring(recipe: Recipe, modifications: int, rows: int) -> tuple[int, float]:
    calls = (1 + modifications) * recipe.probe.samples * recipe.probe.steps * rows
    return calls, calls


def _finetuning(recipe: Recipe, rows: int) -> tuple[int, float]:
    training = recipe.training
    drawn = recipe.examples * recipe.probe.steps * rows if recipe.data is None else 0
    shown, taught, led = (
        training.max_train_steps * training.train_batch_size,
        int(training.needs_teacher),
        int(training.autoguidance_scale > 0),
    )
    learnt = _kept(recipe.budget) * (4 if training.gradient_checkpointing else 3)
    return drawn + shown * (1 + taught + led), drawn + shown * (taught + learnt + led * _kept(recipe.budget))


def _evaluation(recipe: Recipe, rows: int) -> tuple[int, float]:
    """The original draws twice, the pruned pipeline once."""
    point_estimate = recipe.evaluation.samples * recipe.probe.steps * rows
    return 3 * point_estimate, (2 + _kept(recipe.budget)) * point_estimate


def _kept(budget: Budget) -> float:
    """What a call of the pruned denoiser costs of the original's."""
    return next((kept for kept in (budget.macs, budget.latency) if kept is not None), 1.0)
