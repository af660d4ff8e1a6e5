"""Whole steps on a run folder, each one resumable call: what a command does, Python can do too.

`run` scores, selects, prunes, saves and compares. `score_run`, `select_run` and `prune_run` are its parts, and
`evaluate_run` measures. The same call again resumes. Each holds the run folder while it works.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from ldpruner.budget import Budget
from ldpruner.errors import BudgetError
from ldpruner.evaluation.evaluate import Evaluation, evaluate
from ldpruner.evaluation.features import Features, LpipsNetwork
from ldpruner.evaluation.gallery import SHOWN_SAMPLES, Stage, shown_probe, write_samples
from ldpruner.evaluation.metrics import latent_shift, same_latents
from ldpruner.evaluation.scorers import Score
from ldpruner.evaluation.settings import EVALUATED_SAMPLES
from ldpruner.files import locked
from ldpruner.operators.discovery import Granularity
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import force_eager
from ldpruner.pipelines.sampling import BATCH_SIZE
from ldpruner.pipelines.state import align_weights_
from ldpruner.profiling.benchmark import Comparison, compare
from ldpruner.profiling.machine import machine_of
from ldpruner.progress import Progress, reported, unreported
from ldpruner.pruning.fit import prune_to_budget
from ldpruner.pruning.opening import open_pipeline
from ldpruner.pruning.saving import save
from ldpruner.pruning.surgery import prune
from ldpruner.run_folder import RunFolder
from ldpruner.scoring.adaptive import DEFAULT_BUDGETS, AdaptiveScorer
from ldpruner.scoring.importance import Metric
from ldpruner.scoring.results import Scores
from ldpruner.scoring.runner import ScoringRun
from ldpruner.scoring.worker import Executor
from ldpruner.selection.plan import RULES, Plan, Rule
from ldpruner.selection.select import select
from ldpruner.values import Value, check_choice


class Outcome(Value):
    """What a run ended with.

    Attributes:
        plan: what was removed.
        comparison: cost of the original and the pruned pipeline, timed in turn.
        latent_shift: distance of the pruned latents from the original's, on seeds that no selection has seen.
        noise_floor: the same distance between two sets of samples of the original.
        reload_is_exact: whether the saved folder, opened again, gives bit-identical latents.
        samples: files with samples of both on the same seeds: first the sheet of all pictures, the original's above.
    """

    plan: Plan
    comparison: Comparison
    latent_shift: float
    noise_floor: float
    reload_is_exact: bool
    samples: tuple[Path, ...] = ()


def score_run(  # noqa: PLR0913  (each is a choice of its own)
    pipeline: DiffusionPipeline,
    *,
    run: Path | str,
    probe: Probe | None = None,
    model: str | None = None,
    component: str | None = None,
    granularity: Granularity | None = None,
    ignore: Sequence[str] = (),
    targets: Sequence[str] = (),
    metric: Metric = "mean_std",
    batch_size: int = BATCH_SIZE,
    budgets: Sequence[Budget] | None = DEFAULT_BUDGETS,
    executor: Executor | None = None,
    progress: Progress = unreported,
) -> Scores:
    """Scores the operators of a pipeline into a run folder.

    Args:
        pipeline: the original.
        run: the run folder; what it already holds is not computed again.
        probe: which latents to compare.
        model: the name from which later steps open the pipeline again; None is where it was loaded from.
        component: which network, for pipelines with more than one denoiser.
        granularity, ignore, targets: which operators (see `find_operators`).
        metric, batch_size: the score, and samples at once.
        budgets: for which the scores shall be certain enough to select; None scores everything on all samples.
        executor: what samples; this process if None.
        progress: wraps all that takes long.

    Raises:
        RunStoreError: the run folder is another model's or probe's.
    """
    options: dict[str, Any] = {"component": component, "metric": metric, "batch_size": batch_size}
    options |= {"granularity": granularity, "ignore": ignore, "targets": targets, "executor": executor}
    with ScoringRun(pipeline, None, probe, run=run, **options) as scoring:
        return _score(scoring, model, budgets, progress)


def select_run(
    run: Path | str,
    budget: Budget,
    *,
    rule: Rule = "knapsack",
    native: bool = False,
    granularity: Granularity | None = None,
) -> Plan:
    """Selects what to remove from the scores of a run folder, and writes the plan there; see `select`."""
    folder = RunFolder(run)
    with locked(run):
        plan = select(folder.scores(), budget, rule=rule, native=native, granularity=granularity)
        plan.write(folder.plan_file)
        return plan


def prune_run(
    run: Path | str,
    *,
    original: DiffusionPipeline | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: Progress = unreported,
) -> Plan:
    """Prunes the original of a run folder by the plan there, and saves the result as `pruned/`.

    Args:
        original: of the run folder; None opens it with `device` and `dtype` (see `open_pipeline`).
    """
    folder = RunFolder(run)
    with folder.writing(folder.pruned):
        plan = folder.plan()
        pipeline = folder.open_original(original, device, dtype, progress)
        reported(progress, "pruning and saving", lambda: save(prune(pipeline, plan), folder.pruned))
    return plan


def run(  # noqa: PLR0913  (each is a choice of its own)
    pipeline: DiffusionPipeline,
    budget: Budget,
    *,
    run: Path | str,
    probe: Probe | None = None,
    model: str | None = None,
    component: str | None = None,
    granularity: Granularity | None = None,
    ignore: Sequence[str] = (),
    targets: Sequence[str] = (),
    metric: Metric = "mean_std",
    rule: Rule = "knapsack",
    native: bool = False,
    batch_size: int = BATCH_SIZE,
    exhaustive: bool = False,
    executor: Executor | None = None,
    progress: Progress = unreported,
) -> Outcome:
    """Scores, selects, prunes, saves, and compares the pruned pipeline with its original.

    A latency budget is measured, not only predicted. A plan that an earlier call finished for the same settings is
    kept: a latency measured again could give another plan, and whatever was trained since would be lost.

    Args:
        pipeline: the original.
        budget: what may be left.
        rule, native: how to select: `knapsack`, or `greedy` as in the paper; native plans only (see `select`).
        exhaustive: scores everything on all samples, as in the paper.
        run, probe, model, component, granularity, ignore, targets, metric, batch_size, executor, progress: see
            `score_run`.

    Raises:
        BudgetError: the budget cannot be reached.
    """
    check_choice("rule", rule, RULES, BudgetError)
    folder = RunFolder(run)
    options: dict[str, Any] = {"component": component, "metric": metric, "batch_size": batch_size}
    chosen: dict[str, Any] = {"ignore": sorted(ignore), "targets": sorted(targets), "native": native}
    options |= {"granularity": granularity, "executor": executor, **chosen}
    with folder.writing(folder.pruned):
        with ScoringRun(pipeline, None, probe, run=run, **options) as scoring:
            chosen["granularity"] = scoring.granularity
            probe, plan = scoring.probe, _finished_plan(scoring, folder, budget, rule, chosen)
            if plan is not None and (exhaustive <= bool(plan.provenance["exhaustive"])):
                return _finish(pipeline, prune(pipeline, plan, probe=probe), plan, probe, folder, progress)
            scores = _score(scoring, model, None if exhaustive else [budget], progress)
        pruned, plan = prune_to_budget(
            pipeline, scores, budget, rule=rule, native=native, run=folder.path, provenance=chosen, progress=progress
        )
        return _finish(pipeline, pruned, plan, probe, folder, progress)


def evaluate_run(  # noqa: PLR0913  (each is a choice of its own)
    run: Path | str,
    *,
    probe: Probe | None = None,
    data: Path | str | None = None,
    features: Features = "latents",
    clip: str | None = None,
    dino: str | None = None,
    lpips: LpipsNetwork | None = None,
    scorers: Sequence[Score | str] = (),
    batch_size: int | None = None,
    original: DiffusionPipeline | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: Progress = unreported,
) -> Evaluation:
    """Evaluates the latest pipeline of a run folder, and keeps the result there as `evaluation.json`.

    Args:
        probe: how samples are made; None is the probe of the scores, with 64 samples.
        data, features, clip, dino, lpips, scorers, batch_size: see `evaluate`.
        original: of the run folder; None opens it with `device` and `dtype` (see `open_pipeline`).
    """
    folder = RunFolder(run)
    with locked(run):
        scores = folder.scores()
        folder.check_pruned()
        reference = folder.open_original(original, device, dtype, progress)
        latest = folder.latest()
        pipeline = reported(progress, f"opening {latest.name}", lambda: open_pipeline(latest, device, dtype))
        probe = probe or scores.probe.replace(samples=EVALUATED_SAMPLES)
        options: dict[str, Any] = {"data": data, "features": features, "clip": clip, "dino": dino, "lpips": lpips}
        options |= {"scorers": scorers, "batch_size": batch_size, "component": scores.component}
        folder.write_evaluation(evaluation := evaluate(pipeline, reference, probe, progress=progress, **options))
    return evaluation


def _score(scoring: ScoringRun, model: str | None, budgets: Sequence[Budget] | None, progress: Progress) -> Scores:
    """Scores, for budgets or, without any, everything on all samples; the store keeps the scores."""
    reported(progress, "measuring what each module costs", lambda: scoring.scores())
    for _ in progress(scoring if budgets is None else AdaptiveScorer(scoring, budgets), "scoring"):
        pass
    return reported(progress, "timing plans", lambda: scoring.finish(model))


def _finished_plan(
    scoring: ScoringRun, folder: RunFolder, budget: Budget, rule: Rule, chosen: dict[str, Any]
) -> Plan | None:
    """The plan that an earlier run finished for the same settings; the store has checked that it is the same model."""
    if not folder.plan_file.exists() or scoring.store.fact("scores") is None:
        return None
    plan = folder.plan()
    made = {"granularity": "leaf", **dict(plan), **plan.provenance}  # which older plans do not say
    asked = {
        **{"budget": budget, "rule": rule, "component": scoring.denoiser.component},
        "metric": scoring.metric,
        "probe": scoring.probe.model_dump(mode="json", exclude_none=True),
        "machine": machine_of(scoring.denoiser.module),
        "measured": True,
        **chosen,
    }
    return plan if all(made.get(name) == value for name, value in asked.items()) else None


def _finish(
    pipeline: DiffusionPipeline,
    pruned: DiffusionPipeline,
    plan: Plan,
    probe: Probe,
    folder: RunFolder,
    progress: Progress,
) -> Outcome:
    """Saves a pruned pipeline into a run folder, opens it again, and compares it with its original."""
    reported(progress, "saving the pruned pipeline", lambda: save(pruned, folder.pruned))
    reloaded = open_pipeline(folder.pruned, str(pipeline.device), str(pipeline.dtype).removeprefix("torch."))
    for part in (pruned, reloaded):
        align_weights_(part)
    shown = shown_probe(probe)
    other = shown.replace(seed=shown.seed + 1)
    with force_eager():  # the pruned pipeline has not been compiled yet
        pair = {"original": pipeline, "pruned": pruned}
        comparison = compare(pair, probe, component=plan.component, progress=progress)
    folder.write_comparison(comparison)
    pairs = ((pipeline, pruned, (shown, shown)), (pipeline, pipeline, (shown, other)))
    distances = [latent_shift(*each) for each in progress(pairs, "comparing latents")]
    is_recovered = folder.latest() == folder.recovered
    pipelines: dict[Stage, DiffusionPipeline] = {"original": pipeline, "pruned": pruned}
    files = reported(
        progress,
        "writing samples",
        lambda: write_samples(pipelines, shown, SHOWN_SAMPLES, folder.samples, keep=is_recovered),
    )
    return Outcome(
        plan=plan,
        comparison=comparison,
        latent_shift=distances[0],
        noise_floor=distances[1],
        reload_is_exact=same_latents(pruned, reloaded, probe),
        samples=tuple(files),
    )
