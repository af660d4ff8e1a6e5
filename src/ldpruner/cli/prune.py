"""Commands that prune: score, select, prune, and all of it."""

import contextlib
import functools
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ldpruner.cli import options as opt
from ldpruner.cli import parsing, tables
from ldpruner.cli.answer import Answer, settings
from ldpruner.cli.console import terminal
from ldpruner.cli.report import with_report

if TYPE_CHECKING:
    from ldpruner.scoring.worker import Executor
    from ldpruner.selection.plan import Plan
    from ldpruner.workflow import Outcome


def score(
    *,
    model: opt.MODEL,
    run: opt.RUN,
    component: opt.COMPONENT = None,
    granularity: opt.GRANULARITY = None,
    ignore: opt.IGNORE = None,
    targets: opt.TARGETS = None,
    probe: parsing.PROBE,
    metric: opt.METRIC = "mean_std",
    budget: opt.SCORED_BUDGETS = None,
    exhaustive: opt.EXHAUSTIVE = False,
    executor: opt.EXECUTOR = "local",
    ray_address: opt.RAY_ADDRESS = None,
    batch_size: opt.BATCH = opt.BATCH_SIZE,
    device: opt.DEVICE = None,
    dtype: opt.DTYPE = None,
    gpu: opt.GPU = None,
    tflops: opt.TFLOPS = None,
    dry_run: opt.DRY_RUN = False,
) -> Answer:
    """Score every modification of every operator, into a run folder.

    Every removal is scored on one sample. Removals that could still change the selection for a budget get more.
    --dry-run counts the denoiser calls and hours on the configuration alone, for each granularity.

    Example: ldpruner score zoo:satellite --run runs/a --samples 16 --steps 10
    """
    chosen: dict[str, Any] = {"component": component, "granularity": granularity}
    chosen |= {"ignore": ignore or [], "targets": targets or []}
    wanted = [parsing.budget_of(budget)] if budget else []
    parsing.refuse_ignored({"--budget": wanted and exhaustive}, "--exhaustive scores everything, for any budget")
    parsing.check_speed(gpu, tflops, dry_run=dry_run)
    check_executor(executor, ray_address)
    from ldpruner.scoring.adaptive import DEFAULT_BUDGETS

    budgets = None if exhaustive else wanted or DEFAULT_BUDGETS
    if dry_run:
        from ldpruner.cli.forecast import scoring_answer

        shown: dict[str, Any] = {"exhaustive": exhaustive, "executor": executor, "run": str(run)}
        shown |= {"metric": metric, "batch_size": batch_size}
        return scoring_answer(model, probe, budgets, gpu=gpu, tflops=tflops, shown=shown, **chosen)
    from ldpruner.cli.forecast import announce
    from ldpruner.workflow import score_run

    with executor_of(executor, ray_address, model, device, dtype) as sampler:
        pipeline = opened(model, device, dtype)
        announce(model, pipeline, probe, budgets, **chosen)
        scores = score_run(
            pipeline,
            run=run,
            probe=probe,
            model=model,
            metric=metric,
            batch_size=batch_size,
            budgets=budgets,
            executor=sampler,
            progress=terminal.progress,
            **chosen,
        )
    return Answer(
        scores.model_dump(mode="json", exclude={"scores": {"__all__": {"candidate"}}}),
        tables.scores(scores),
        f"ldpruner select --run {shlex.quote(str(run))} --budget latency=0.65",
    )


def select(
    run: opt.RUN,
    budget: opt.BUDGET,
    rule: opt.RULE = "knapsack",
    native: opt.NATIVE = False,
    granularity: opt.SELECTED = None,
    dry_run: opt.DRY_RUN = False,
) -> Answer:
    """Select what to remove so that a budget is met, from the scores of a run folder.

    Example: ldpruner select --run runs/a --budget latency=0.65
    """
    wanted = parsing.budget_of(budget)
    if dry_run:
        shown = {"rule": rule, "native": native, "granularity": granularity}
        return settings(run=str(run), budget=wanted.model_dump(exclude_none=True), **shown)
    from ldpruner.workflow import select_run

    plan = select_run(run, wanted, rule=rule, native=native, granularity=granularity)
    return plan_answer(plan, f"ldpruner prune --run {shlex.quote(str(run))}")


def prune(run: opt.RUN, device: opt.DEVICE = None, dtype: opt.DTYPE = None, dry_run: opt.DRY_RUN = False) -> Answer:
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
    *,
    model: opt.MODEL,
    run: opt.RUN,
    budget: opt.BUDGET,
    rule: opt.RULE = "knapsack",
    native: opt.NATIVE = False,
    component: opt.COMPONENT = None,
    granularity: opt.GRANULARITY = None,
    ignore: opt.IGNORE = None,
    targets: opt.TARGETS = None,
    probe: parsing.PROBE,
    metric: opt.METRIC = "mean_std",
    exhaustive: opt.EXHAUSTIVE = False,
    finetune: opt.FINETUNE = False,
    data: opt.DATA = None,
    until: opt.UNTIL = None,
    executor: opt.EXECUTOR = "local",
    ray_address: opt.RAY_ADDRESS = None,
    batch_size: opt.BATCH = opt.BATCH_SIZE,
    device: opt.DEVICE = None,
    dtype: opt.DTYPE = None,
    dry_run: opt.DRY_RUN = False,
) -> Answer:
    """Score, select, prune, save, and compare the pruned pipeline with its original.

    Example: ldpruner run zoo:satellite --run runs/demo --budget latency=0.65 --finetune
    """
    parsing.refuse_ignored(
        {"--data": data and not finetune, "--until": until and not finetune}, "it is for --finetune"
    )
    wanted = parsing.budget_of(budget)
    operators: dict[str, Any] = {"component": component, "granularity": granularity}
    operators |= {"ignore": ignore or [], "targets": targets or []}
    check_executor(executor, ray_address)
    chosen: dict[str, Any] = {"metric": metric, "rule": rule, "native": native}
    chosen |= {"batch_size": batch_size, "exhaustive": exhaustive}
    if dry_run:
        shown = {"budget": wanted.model_dump(exclude_none=True), "probe": probe.model_dump(mode="json")}
        after = {"finetune": finetune, "data": str(data) if data else None, "until": until}
        return settings(model=model, run=str(run), **shown, **operators, **chosen, executor=executor, **after)
    from ldpruner.cli.forecast import announce
    from ldpruner.workflow import run as run_all

    pipeline = opened(model, device, dtype)
    with executor_of(executor, ray_address, model, device, dtype) as sampler:
        announce(model, pipeline, probe, None if exhaustive else [wanted], **operators)
        chosen |= {"executor": sampler, "progress": terminal.progress}
        outcome = run_all(pipeline, wanted, run=run, probe=probe, model=model, **operators, **chosen)
    pruned = outcome_answer(outcome, run)
    if not finetune:
        return with_report(pruned, run)
    from ldpruner.cli.recover import evaluation_answer, history_answer
    from ldpruner.recovery import recover_run
    from ldpruner.run_folder import RunFolder

    history, evaluation = recover_run(run, data=data, until=until, original=pipeline, progress=terminal.progress)
    answers = {
        "prune": pruned,
        "finetune": history_answer(history, run) if history is not None else Answer(None),
        "evaluate": evaluation_answer(evaluation, RunFolder(run).latest(), model),
    }
    parts = [part for answer in answers.values() for part in answer.parts]
    everything = Answer({name: answer.data for name, answer in answers.items()}, parts, answers["evaluate"].then)
    return with_report(everything, run)


def plan_answer(plan: "Plan", then: str, *lines: str) -> Answer:
    """What a plan removes; more lines follow below."""
    return Answer(_plan_data(plan), [*tables.plan(plan), *lines], then)


def outcome_answer(outcome: "Outcome", run: Path) -> Answer:
    """What a run ended with."""
    measured = outcome.model_dump(mode="json", exclude={"plan", "comparison"})
    data = {**_plan_data(outcome.plan), **outcome.comparison.model_dump(mode="json"), **measured}
    exact = "bit-identical" if outcome.reload_is_exact else "NOT identical"
    files = [f"samples of the same seeds: {path}" for path in outcome.samples[:1]]
    saved = f"pruned pipeline: {run / 'pruned'} (opened again: latents {exact})"
    return Answer(data, [*tables.outcome(outcome), saved, *files], f"ldpruner finetune --run {shlex.quote(str(run))}")


def _plan_data(plan: "Plan") -> dict[str, Any]:
    removed = [
        {
            **planned.removal.model_dump(mode="json", exclude={"source"}),
            **planned.model_dump(mode="json", exclude={"removal"}),
        }
        for planned in plan.removed
    ]
    return {
        "budget": plan.budget.model_dump(exclude_none=True) if plan.budget else {},
        "removed": removed,
        "predicted": plan.predicted.model_dump() if plan.predicted else {},
        **{name: plan.provenance[name] for name in ("cost", "least_cost") if name in plan.provenance},
    }


def opened(model: str, device: str | None, dtype: str | None, *, trust_programs: bool = False) -> Any:
    """The pipeline of a name; that it is being opened is reported."""
    from ldpruner.progress import reported
    from ldpruner.pruning.opening import open_pipeline

    def work() -> Any:
        return open_pipeline(model, device, dtype, trust_programs=trust_programs)

    return reported(terminal.progress, f"opening {model}", work)


def check_executor(name: str, address: str | None) -> None:
    """Refuses an address of a cluster that would be ignored, and a cluster without Ray."""
    parsing.refuse_ignored({"--ray-address": address is not None and name != "ray"}, "it is for --executor ray")
    if name == "ray" and find_spec("ray") is None:
        raise typer.BadParameter("--executor ray needs Ray: pip install 'ld-pruner[ray]'")


def executor_of(
    name: str, address: str | None, model: str, device: str | None, dtype: str | None
) -> contextlib.AbstractContextManager["Executor | None"]:
    """What samples for scores: workers that each open the pipeline, or None for this process."""
    if name == "local":
        return contextlib.nullcontext()
    from ldpruner.pruning.opening import open_pipeline
    from ldpruner.scoring.ray import RayExecutor

    place = str(Path(model).resolve()) if Path(model).exists() else model
    return RayExecutor(functools.partial(open_pipeline, place, device, dtype), address)
