"""Commands that prune: score, select, prune, and all of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from rich.console import Console

from ldpruner.budget import Budget
from ldpruner.cli import parsing, tables
from ldpruner.cli.app import (
    BATCH_OPTION,
    BUDGET,
    CALL,
    COMPONENT,
    DEVICE,
    DRY,
    DTYPE,
    EXECUTOR,
    EXHAUSTIVE,
    GUIDANCE,
    JSON,
    METRIC,
    MODEL,
    PROMPTS,
    RACED,
    RAY_ADDRESS,
    RULE,
    RUN,
    SAMPLES,
    SEED,
    STEPS,
    app,
    executor_of,
    fact,
    known_scores,
    open_pipeline,
    print_json,
    progress,
    resolved,
)
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.sampling import BATCH_SIZE
from ldpruner.pruning.serialization import save
from ldpruner.pruning.surgery import prune
from ldpruner.scoring.adaptive import USUAL, AdaptiveScorer
from ldpruner.scoring.importance import METRICS, Metric
from ldpruner.scoring.results import Scores
from ldpruner.scoring.runner import Scoring
from ldpruner.scoring.worker import Executor
from ldpruner.selection.plan import RULES, Plan, Rule
from ldpruner.selection.select import select
from ldpruner.workflow import Outcome, finish, prune_to_budget


@app.command()
def score(
    model: MODEL,
    run: RUN,
    component: COMPONENT = None,
    samples: SAMPLES = 16,
    steps: STEPS = 25,
    seed: SEED = 0,
    prompts: PROMPTS = None,
    guidance: GUIDANCE = None,
    call: CALL = None,
    metric: METRIC = "mean_std",
    batch: BATCH_OPTION = BATCH_SIZE,
    budget: RACED = None,
    exhaustive: EXHAUSTIVE = False,
    executor: EXECUTOR = "local",
    ray_address: RAY_ADDRESS = None,
    device: DEVICE = None,
    dtype: DTYPE = None,
    as_json: JSON = False,
    dry_run: DRY = False,
) -> None:
    """Score every modification of every operator, into a run folder.

    All that save enough to matter are looked at in single steps; those that could still change what is selected for a
    budget are drawn on as few samples as will do. --dry-run also says how many denoiser calls and seconds that takes.

    Example: ldpruner score zoo:satellite --run runs/a --samples 16 --steps 10
    """
    probe = parsing.probe_of(samples, steps, seed, prompts, guidance, call)
    settings = {
        "model": model,
        "run": str(run),
        "probe": probe.model_dump(mode="json"),
        "metric": metric,
        "batch": batch,
        "exhaustive": exhaustive,
        "executor": executor,
    }
    raced = [parsing.budget_of(budget)] if budget else USUAL
    chosen_metric = parsing.one_of(metric, METRICS, "--metric")
    with (
        executor_of(executor, ray_address, model, device, dtype) as drawing,
        Scoring(
            open_pipeline(model, device, dtype),
            None,
            probe,
            component=component,
            run=None if dry_run else run,
            metric=chosen_metric,
            batch_size=batch,
            executor=drawing,
        ) as scoring,
    ):
        if dry_run:
            print_json({**settings, **AdaptiveScorer(scoring, raced).forecast(exhaustive=exhaustive).model_dump()})
            return
        scores = _score(scoring, model, None if exhaustive else raced)
    if as_json:
        print_json(_scores_json(scores))
    else:
        Console().print(tables.scores(scores))


@app.command("select")
def select_command(
    run: RUN, budget: BUDGET, rule: RULE = "knapsack", as_json: JSON = False, dry_run: DRY = False
) -> None:
    """Choose what to remove so that a budget is met, from the scores of a run folder.

    Example: ldpruner select --run runs/a --budget latency=0.65
    """
    wanted, chosen_rule = parsing.budget_of(budget), parsing.one_of(rule, RULES, "--rule")
    if dry_run:
        print_json({"run": str(run), "budget": wanted.model_dump(exclude_none=True), "rule": rule})
        return
    plan = select(known_scores(run), wanted, rule=chosen_rule)
    plan.write(run / "plan.json")
    _show_plan(plan, as_json)


@app.command("prune")
def prune_command(
    run: RUN, device: DEVICE = None, dtype: DTYPE = None, as_json: JSON = False, dry_run: DRY = False
) -> None:
    """Remove what the plan of a run folder says, and save the pruned pipeline there.

    Example: ldpruner prune --run runs/a
    """
    plan, model = Plan.read(run / "plan.json"), fact(run, "model")
    if dry_run:
        print_json({"run": str(run), "model": model, "removed": len(plan.removed)})
        return
    save(prune(open_pipeline(model, device, dtype), plan), run / "pruned")
    _show_plan(plan, as_json)


@app.command("run")
def run_command(
    model: MODEL,
    run: RUN,
    budget: BUDGET,
    component: COMPONENT = None,
    samples: SAMPLES = 16,
    steps: STEPS = 25,
    seed: SEED = 0,
    prompts: PROMPTS = None,
    guidance: GUIDANCE = None,
    call: CALL = None,
    metric: METRIC = "mean_std",
    rule: RULE = "knapsack",
    batch: BATCH_OPTION = BATCH_SIZE,
    exhaustive: EXHAUSTIVE = False,
    executor: EXECUTOR = "local",
    ray_address: RAY_ADDRESS = None,
    device: DEVICE = None,
    dtype: DTYPE = None,
    as_json: JSON = False,
    dry_run: DRY = False,
) -> None:
    """Score, select, prune, save, and set the pruned pipeline beside its original.

    Example: ldpruner run zoo:satellite --run runs/demo --budget latency=0.65
    """
    probe, wanted = parsing.probe_of(samples, steps, seed, prompts, guidance, call), parsing.budget_of(budget)
    chosen_metric, chosen_rule = parsing.one_of(metric, METRICS, "--metric"), parsing.one_of(rule, RULES, "--rule")
    if dry_run:
        settings = {"model": model, "run": str(run), "budget": wanted.model_dump(exclude_none=True), "rule": rule}
        print_json(
            {
                **settings,
                "probe": probe.model_dump(mode="json"),
                "metric": metric,
                "batch": batch,
                "exhaustive": exhaustive,
                "executor": executor,
            }
        )
        return
    pipeline = open_pipeline(model, device, dtype)
    choices: dict[str, Any] = {"metric": chosen_metric, "rule": chosen_rule, "batch": batch, "exhaustive": exhaustive}
    with executor_of(executor, ray_address, model, device, dtype) as drawing:
        outcome = run_all(pipeline, model, run, probe, wanted, component=component, executor=drawing, **choices)
    show_outcome(outcome, run, as_json)


def run_all(
    pipeline: DiffusionPipeline,
    model: str,
    run: Path,
    probe: Probe,
    budget: Budget,
    *,
    component: str | None = None,
    metric: Metric = "mean_std",
    rule: Rule = "knapsack",
    batch: int = BATCH_SIZE,
    exhaustive: bool = False,
    executor: Executor | None = None,
) -> Outcome:
    """Scores, with a progress bar, selects, prunes, saves and compares."""
    options: dict[str, Any] = {"component": component, "metric": metric, "batch_size": batch, "executor": executor}
    with Scoring(pipeline, None, probe, run=run, **options) as scoring:
        plan = _known_plan(scoring, run, budget, rule)
        if plan is not None and (plan.provenance["exhaustive"] or not exhaustive):
            return finish(pipeline, prune(pipeline, plan), plan, probe, run)
        scores = _score(scoring, model, None if exhaustive else [budget])
    pruned, plan = prune_to_budget(pipeline, scores, budget, rule=rule)
    return finish(pipeline, pruned, plan, probe, run)


def _known_plan(scoring: Scoring, run: Path, budget: Budget, rule: Rule) -> Plan | None:
    """The plan of an earlier run for the same: a latency measured again could give another, and lose what followed.

    That the run folder is the same model's, the ledger has made sure of.
    """
    path = run / "plan.json"
    if not path.exists() or scoring.store.fact("scores") is None:
        return None
    plan = Plan.read(path)
    made = {"budget": plan.budget, "rule": plan.rule, "component": plan.component, **plan.provenance}
    asked = {
        "budget": budget,
        "rule": rule,
        "component": scoring.denoiser.component,
        "metric": scoring.metric,
        "probe": scoring.probe.model_dump(mode="json", exclude_none=True),
        "measured": True,
    }
    return plan if all(made.get(name) == value for name, value in asked.items()) else None


def _score(scoring: Scoring, model: str, raced: Sequence[Budget] | None) -> Scores:
    """Scores with a progress bar: races for budgets or, without any, draws everything. The ledger keeps the scores."""
    scoring.store.set_fact("model", resolved(model))
    for _ in progress(scoring if raced is None else AdaptiveScorer(scoring, raced), "scoring"):
        pass
    scores = scoring.scores()
    scoring.store.set_fact("scores", scores.model_dump(mode="json"))
    return scores


def _scores_json(scores: Scores) -> dict[str, Any]:
    return scores.model_dump(mode="json", exclude={"scores": {"__all__": {"candidate"}}})


def _plan_json(plan: Plan) -> dict[str, Any]:
    return {
        "budget": plan.budget.model_dump(exclude_none=True) if plan.budget else {},
        "removed": [
            one.model_dump(
                mode="json", include={"operator", "modification", "score", "selection_frequency", "cascaded"}
            )
            for one in plan.removed
        ],
        "predicted": plan.predicted.model_dump() if plan.predicted else {},
    }


def _show_plan(plan: Plan, as_json: bool) -> None:
    if as_json:
        print_json(_plan_json(plan))
    else:
        Console().print(tables.plan(plan))


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """What a run ended with, as `--json` prints it."""
    measured = outcome.model_dump(mode="json", exclude={"plan", "comparison"})
    return {**_plan_json(outcome.plan), **outcome.comparison.model_dump(mode="json"), **measured}


def show_outcome(outcome: Outcome, run: Path, as_json: bool) -> None:
    """Prints what a run ended with."""
    if as_json:
        print_json(outcome_json(outcome))
        return
    console = Console()
    console.print(tables.outcome(outcome))
    exact = "equal to the bit" if outcome.reload_is_exact else "NOT equal"
    console.print(f"pruned pipeline: {run / 'pruned'} (opened again: latents {exact})", highlight=False)
    if outcome.samples:
        console.print(f"same seeds before and after: {', '.join(map(str, outcome.samples[:1]))}", highlight=False)
