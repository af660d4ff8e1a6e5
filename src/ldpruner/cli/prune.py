"""Commands that prune: score, select, prune, and all of it."""

import contextlib
import functools
import shlex
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldpruner.cli import parsing
from ldpruner.cli.answer import DRY_RUN, Answer, settings
from ldpruner.cli.console import Table, terminal
from ldpruner.cli.options import (
    BATCH,
    BATCH_SIZE,
    BUDGET,
    COMPONENT,
    DEVICE,
    DTYPE,
    EXECUTOR,
    EXECUTORS,
    EXHAUSTIVE,
    GUIDANCE,
    IGNORE,
    METRIC,
    MODEL,
    PIPELINE_ARG,
    PROMPTS,
    RAY_ADDRESS,
    RULE,
    RUN,
    SAMPLES,
    SCORED_BUDGETS,
    SEED,
    STEPS,
    TARGETS,
)

if TYPE_CHECKING:
    from ldpruner.scoring.worker import Executor
    from ldpruner.selection.plan import Plan
    from ldpruner.workflow import Outcome

TFLOPS = Annotated[float, typer.Option(help="For a dry run: what the GPU sustains, in TFLOP/s.", min=0.001)]


def score(
    model: MODEL,
    run: RUN,
    component: COMPONENT = None,
    ignore: IGNORE = None,
    targets: TARGETS = None,
    prompts: PROMPTS = None,
    guidance: GUIDANCE = None,
    pipeline_arg: PIPELINE_ARG = None,
    samples: SAMPLES = 16,
    steps: STEPS = 25,
    seed: SEED = 0,
    metric: METRIC = "mean_std",
    budget: SCORED_BUDGETS = None,
    exhaustive: EXHAUSTIVE = False,
    executor: EXECUTOR = "local",
    ray_address: RAY_ADDRESS = None,
    batch_size: BATCH = BATCH_SIZE,
    device: DEVICE = None,
    dtype: DTYPE = None,
    tflops: TFLOPS = 100.0,
    dry_run: DRY_RUN = False,
) -> Answer:
    """Score every modification of every operator, into a run folder.

    Cheap one-step scores come first; only removals that could still change what is selected for a budget are sampled
    further. --dry-run counts the denoiser calls and hours on the configuration alone.

    Example: ldpruner score zoo:satellite --run runs/a --samples 16 --steps 10
    """
    probe = parsing.probe_of(samples, steps, seed, prompts, guidance, pipeline_arg)
    patterns: dict[str, Any] = {"ignore": ignore or [], "targets": targets or []}
    options: dict[str, Any] = {"metric": parsing.metric_of(metric), "batch_size": batch_size}
    parsing.one_of(executor, EXECUTORS, "--executor")
    budgets = [parsing.budget_of(budget)] if budget else None
    if dry_run:
        from ldpruner.cli.forecast import scoring_answer

        shown = {"exhaustive": exhaustive, "executor": executor, "run": str(run), **options}
        return scoring_answer(model, probe, budgets, component=component, tflops=tflops, shown=shown, **patterns)
    from ldpruner.cli import tables
    from ldpruner.scoring.adaptive import DEFAULT_BUDGETS
    from ldpruner.workflow import score_run

    with executor_of(executor, ray_address, model, device, dtype) as sampler:
        scores = score_run(
            _opened(model, device, dtype),
            run=run,
            probe=probe,
            model=model,
            component=component,
            budgets=None if exhaustive else budgets or DEFAULT_BUDGETS,
            executor=sampler,
            progress=terminal.progress,
            **patterns,
            **options,
        )
    return Answer(
        scores.model_dump(mode="json", exclude={"scores": {"__all__": {"candidate"}}}),
        [tables.scores_headline(scores), tables.scores(scores)],
        f"ldpruner select --run {shlex.quote(str(run))} --budget latency=0.65",
    )


def select(run: RUN, budget: BUDGET, rule: RULE = "knapsack", dry_run: DRY_RUN = False) -> Answer:
    """Select what to remove so that a budget is met, from the scores of a run folder.

    Example: ldpruner select --run runs/a --budget latency=0.65
    """
    wanted, chosen_rule = parsing.budget_of(budget), parsing.rule_of(rule)
    if dry_run:
        return settings(run=str(run), budget=wanted.model_dump(exclude_none=True), rule=rule)
    from ldpruner.workflow import select_run

    plan = select_run(run, wanted, rule=chosen_rule)
    return plan_answer(plan, f"ldpruner prune --run {shlex.quote(str(run))}")


def prune(run: RUN, device: DEVICE = None, dtype: DTYPE = None, dry_run: DRY_RUN = False) -> Answer:
    """Remove what the plan of a run folder says, and save the pruned pipeline there.

    Example: ldpruner prune --run runs/a
    """
    from ldpruner.run_folder import RunFolder
    from ldpruner.workflow import prune_run

    folder = RunFolder(run)
    if dry_run:
        removed = len(folder.plan().removed)
        return settings(run=str(run), model=folder.model(), removed=removed, device=device, dtype=dtype)
    plan = prune_run(run, device=device, dtype=dtype, progress=terminal.progress)
    original, pruned = (shlex.quote(str(name)) for name in (folder.model(), folder.pruned))
    return plan_answer(plan, f"ldpruner bench {original} {pruned}", f"pruned pipeline: {folder.pruned}")


def run(
    model: MODEL,
    run: RUN,
    budget: BUDGET,
    rule: RULE = "knapsack",
    component: COMPONENT = None,
    ignore: IGNORE = None,
    targets: TARGETS = None,
    prompts: PROMPTS = None,
    guidance: GUIDANCE = None,
    pipeline_arg: PIPELINE_ARG = None,
    samples: SAMPLES = 16,
    steps: STEPS = 25,
    seed: SEED = 0,
    metric: METRIC = "mean_std",
    exhaustive: EXHAUSTIVE = False,
    executor: EXECUTOR = "local",
    ray_address: RAY_ADDRESS = None,
    batch_size: BATCH = BATCH_SIZE,
    device: DEVICE = None,
    dtype: DTYPE = None,
    dry_run: DRY_RUN = False,
) -> Answer:
    """Score, select, prune, save, and compare the pruned pipeline with its original.

    Example: ldpruner run zoo:satellite --run runs/demo --budget latency=0.65
    """
    probe = parsing.probe_of(samples, steps, seed, prompts, guidance, pipeline_arg)
    wanted = parsing.budget_of(budget)
    options: dict[str, Any] = {
        "component": component,
        "ignore": ignore or [],
        "targets": targets or [],
        "metric": parsing.metric_of(metric),
        "rule": parsing.rule_of(rule),
        "batch_size": batch_size,
        "exhaustive": exhaustive,
    }
    parsing.one_of(executor, EXECUTORS, "--executor")
    if dry_run:
        shown = {"budget": wanted.model_dump(exclude_none=True), "probe": probe.model_dump(mode="json")}
        return settings(model=model, run=str(run), **shown, **options, executor=executor)
    from ldpruner.workflow import run as run_all

    with executor_of(executor, ray_address, model, device, dtype) as sampler:
        options.update(executor=sampler, progress=terminal.progress)
        outcome = run_all(_opened(model, device, dtype), wanted, run=run, probe=probe, model=model, **options)
    return outcome_answer(outcome, run)


def plan_answer(plan: "Plan", then: str, *lines: str) -> Answer:
    """What a plan removes; more lines follow below."""
    from ldpruner.cli import tables

    return Answer(_plan_data(plan), [tables.plan_headline(plan), tables.plan(plan), *lines], then)


def outcome_answer(outcome: "Outcome", run: Path) -> Answer:
    """What a run ended with."""
    from ldpruner.cli import tables

    measured = outcome.model_dump(mode="json", exclude={"plan", "comparison"})
    data = {**_plan_data(outcome.plan), **outcome.comparison.model_dump(mode="json"), **measured}
    exact = "bit-identical" if outcome.reload_is_exact else "NOT identical"
    files = [f"same seeds before and after: {path}" for path in outcome.samples[:1]]
    saved = f"pruned pipeline: {run / 'pruned'} (opened again: latents {exact})"
    parts: Sequence[str | Table] = [tables.outcome_headline(outcome), tables.outcome(outcome), saved, *files]
    return Answer(data, parts, f"ldpruner finetune --run {shlex.quote(str(run))}")


def _plan_data(plan: "Plan") -> dict[str, Any]:
    from ldpruner.cli import tables

    return {
        "budget": plan.budget.model_dump(exclude_none=True) if plan.budget else {},
        "removed": [tables.removal_fields(removal) for removal in plan.removed],
        "predicted": plan.predicted.model_dump() if plan.predicted else {},
    }


def _opened(model: str, device: str | None, dtype: str | None) -> Any:
    from ldpruner.progress import reported
    from ldpruner.pruning.opening import open_pipeline

    return reported(terminal.progress, f"opening {model}", lambda: open_pipeline(model, device, dtype))


@contextlib.contextmanager
def executor_of(
    name: str, address: str | None, model: str, device: str | None, dtype: str | None
) -> Iterator["Executor | None"]:
    """What samples for scores: workers that each open the pipeline, or None for this process."""
    if name == "local":
        if address is not None:
            raise typer.BadParameter("--ray-address is for --executor ray")
        yield None
        return
    if find_spec("ray") is None:
        raise typer.BadParameter("--executor ray needs Ray: pip install 'ld-pruner[ray]'")
    from ldpruner.pruning.opening import open_pipeline
    from ldpruner.scoring.ray import RayExecutor

    place = str(Path(model).resolve()) if Path(model).exists() else model
    with RayExecutor(functools.partial(open_pipeline, place, device, dtype), address) as executor:
        yield executor
