"""The command line: parse, build values, call the library, print."""

import json
import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import diffusers.utils.logging
import torch
import transformers.utils.logging
import typer
from diffusers import DiffusionPipeline
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ldpruner import parsing, tables
from ldpruner.bench import compare
from ldpruner.dataflow import trace
from ldpruner.errors import LdPrunerError, LedgerError, one_line
from ldpruner.fingerprints import count_parameters
from ldpruner.importance import METRICS, Metric
from ldpruner.operators import denoiser_macs, operators_of
from ldpruner.pipelines import find_denoiser
from ldpruner.probe import Probe
from ldpruner.runs import Ledger
from ldpruner.saving import load, load_weightless, save
from ldpruner.scores import Scores
from ldpruner.scoring import BATCH, Scoring
from ldpruner.selection import RULES, Plan, select
from ldpruner.surgery import prune
from ldpruner.workflow import Outcome, finish, prune_to_budget

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="Prune latent diffusion models."
)
errors = Console(stderr=True, highlight=False)
Item = TypeVar("Item")
# typer brings a click of its own and exports of its errors only this one.
ClickError: Any = typer.BadParameter.__mro__[2]

MODEL = Annotated[str, typer.Argument(help="A folder, a Hub id, or zoo:NAME.")]
RUN = Annotated[Path, typer.Option("--run", help="The run folder; the same command again resumes.")]
JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object; everything else goes to standard error.")]
DRY = Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")]
COMPONENT = Annotated[str | None, typer.Option(help="Which network, where there are several denoisers.")]
SAMPLES = Annotated[int, typer.Option(help="Latents to draw for each modification.")]
STEPS = Annotated[int, typer.Option(help="Denoising steps of each.")]
SEED = Annotated[int, typer.Option(help="From which each sample's own seed is made.")]
PROMPTS = Annotated[Path | None, typer.Option(help="A text file with a prompt on each line.")]
GUIDANCE = Annotated[float | None, typer.Option(help="Scale of classifier-free guidance.")]
CALL = Annotated[list[str] | None, typer.Option(help="A further argument of the pipeline's call: key=value.")]
BATCH_SIZE = Annotated[int, typer.Option("--batch", help="Samples drawn at once.", min=1)]
METRIC = Annotated[str, typer.Option(help=f"The score: {', '.join(METRICS)}.")]
BUDGET = Annotated[list[str], typer.Option(help="What may be left, such as latency=0.65; repeatable.")]
RULE = Annotated[str, typer.Option(help=f"How to choose: {', '.join(RULES)}.")]
DTYPE = Annotated[str | None, typer.Option(help="Precision of the weights, such as float16. Default: float32.")]
DEVICE = Annotated[str | None, typer.Option(help="Where to run: cpu, cuda, mps. Default: cuda if there is one.")]


def main() -> int:
    """Runs the command line; the exit code. A user's mistake is one red line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    _quiet_libraries()
    try:
        app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        errors.print("stopped; the same command again carries on", style="yellow")
        return 130
    except ClickError as error:
        errors.print(f"error: {error.format_message()}", style="red", markup=False, soft_wrap=True)
        return 2
    except LdPrunerError as error:
        errors.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    return 0


def _quiet_libraries() -> None:
    logging.getLogger("httpx").setLevel(logging.WARNING)
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


@app.command()
def operators(
    model: MODEL, component: COMPONENT = None, call: CALL = None, as_json: JSON = False, dry_run: DRY = False
) -> None:
    """List what can be removed from a pipeline's denoiser. Needs its configuration files only.

    Example: ldpruner operators zoo:satellite
    """
    probe = Probe(samples=1, call=parsing.call_arguments(call))
    if dry_run:
        _print_json({"model": model, "component": component, "call": probe.model_dump(mode="json")["call"]})
        return
    pipeline = load_weightless(model)
    denoiser = find_denoiser(pipeline, component, probe.arguments(pipeline, [0]))
    flow = trace(denoiser)
    found = operators_of(denoiser, flow)
    totals = {"parameters": count_parameters(denoiser.module), "macs": denoiser_macs(denoiser, flow)}
    if as_json:
        rows = [
            {
                **one.model_dump(mode="json", by_alias=True, exclude={"component", "candidates"}),
                "modifications": one.modifications,
            }
            for one in found
        ]
        _print_json(
            {"pipeline": type(pipeline).__name__, "component": denoiser.component, **totals, "operators": rows}
        )
    else:
        Console().print(tables.operators(found, totals))


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
    batch: BATCH_SIZE = BATCH,
    device: DEVICE = None,
    dtype: DTYPE = None,
    as_json: JSON = False,
    dry_run: DRY = False,
) -> None:
    """Score every modification of every operator, into a run folder.

    Example: ldpruner score zoo:satellite --run runs/a --samples 16 --steps 10
    """
    probe = parsing.probe_of(samples, steps, seed, prompts, guidance, call)
    settings = {
        "model": model,
        "run": str(run),
        "probe": probe.model_dump(mode="json"),
        "metric": metric,
        "batch": batch,
    }
    if dry_run:
        _print_json(settings)
        return
    scores = _score(
        _open(model, device, dtype), model, run, probe, parsing.one_of(metric, METRICS, "--metric"), batch, component
    )
    if as_json:
        _print_json(_scores_json(scores))
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
        _print_json({"run": str(run), "budget": wanted.model_dump(exclude_none=True), "rule": rule})
        return
    plan = select(_known_scores(run), wanted, rule=chosen_rule)
    plan.write(run / "plan.json")
    _show_plan(plan, as_json)


@app.command("prune")
def prune_command(
    run: RUN, device: DEVICE = None, dtype: DTYPE = None, as_json: JSON = False, dry_run: DRY = False
) -> None:
    """Remove what the plan of a run folder says, and save the pruned pipeline there.

    Example: ldpruner prune --run runs/a
    """
    plan, model = Plan.read(run / "plan.json"), _fact(run, "model")
    if dry_run:
        _print_json({"run": str(run), "model": model, "removed": len(plan.removed)})
        return
    save(prune(_open(model, device, dtype), plan), run / "pruned")
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
    batch: BATCH_SIZE = BATCH,
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
        _print_json({**settings, "probe": probe.model_dump(mode="json"), "metric": metric, "batch": batch})
        return
    pipeline = _open(model, device, dtype)
    scores = _score(pipeline, model, run, probe, chosen_metric, batch, component)
    pruned, plan = prune_to_budget(pipeline, scores, wanted, rule=chosen_rule)
    _show_outcome(finish(pipeline, pruned, plan, probe, run), run, as_json)


@app.command()
def demo(run: RUN = Path("runs/demo"), as_json: JSON = False, dry_run: DRY = False) -> None:
    """Prune the bundled model to 65 % of its latency: a few minutes, nothing is downloaded.

    Example: ldpruner demo
    """
    run_command("zoo:satellite", run, ["latency=0.65"], samples=16, steps=10, as_json=as_json, dry_run=dry_run)


@app.command("bench")
def bench_command(
    model: MODEL,
    other: Annotated[str | None, typer.Argument(help="A second pipeline, timed in turn with the first.")] = None,
    component: COMPONENT = None,
    steps: STEPS = 25,
    prompts: PROMPTS = None,
    guidance: GUIDANCE = None,
    call: CALL = None,
    rounds: Annotated[int, typer.Option(help="Timings of each.", min=2)] = 15,
    device: DEVICE = None,
    dtype: DTYPE = None,
    as_json: JSON = False,
    dry_run: DRY = False,
) -> None:
    """Measure a pipeline, or two in turn.

    Example: ldpruner bench zoo:satellite runs/demo/pruned
    """
    probe = parsing.probe_of(1, steps, 0, prompts, guidance, call)
    if dry_run:
        _print_json({"pipelines": [model, other], "probe": probe.model_dump(mode="json"), "rounds": rounds})
        return
    pipelines = {name: _open(name, device, dtype) for name in (model, other) if name is not None}
    if other == model:
        pipelines = {f"{model} (first)": _open(model, device, dtype), f"{model} (second)": _open(model, device, dtype)}
    comparison = compare(pipelines, probe, component=component, rounds=rounds)
    if as_json:
        _print_json(comparison.model_dump(mode="json"))
    else:
        Console().print(tables.comparison(comparison))


def _open(model: str, device: str | None, dtype: str | None) -> DiffusionPipeline:
    pipeline = load(model, torch_dtype=parsing.precision(dtype))
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return pipeline if place == "cpu" else pipeline.to(place)
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(f"device {place!r} cannot be used: {one_line(error)}") from error


def _score(
    pipeline: DiffusionPipeline,
    model: str,
    run: Path,
    probe: Probe,
    metric: Metric,
    batch: int,
    component: str | None,
) -> Scores:
    with Scoring(pipeline, None, probe, component=component, run=run, metric=metric, batch_size=batch) as scoring:
        scoring.ledger.set_fact("model", str(Path(model).resolve()) if Path(model).exists() else model)
        for _ in _progress(scoring, len(scoring), "scoring"):
            pass
        scores = scoring.scores()
        scoring.ledger.set_fact("scores", scores.model_dump(mode="json"))
    return scores


def _progress(work: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors) as progress:
        yield from progress.track(work, total=total)


def _fact(run: Path, name: str) -> Any:
    if not (run / "run.sqlite").exists():
        raise LedgerError(f"no run at {run}; make one with 'ldpruner score MODEL --run {run}'")
    with Ledger(run) as ledger:
        value = ledger.fact(name)
    if value is None:
        raise LedgerError(f"the run at {run} has no {name} yet; finish it with 'ldpruner score MODEL --run {run}'")
    return value


def _known_scores(run: Path) -> Scores:
    try:
        return Scores.model_validate(_fact(run, "scores"))
    except ValidationError as error:
        raise LedgerError(f"the scores of {run} are not readable: {one_line(error)}; score again") from error


def _scores_json(scores: Scores) -> dict[str, Any]:
    return scores.model_dump(mode="json", exclude={"scores": {"__all__": {"candidate"}}})


def _plan_json(plan: Plan) -> dict[str, Any]:
    return {
        "budget": plan.budget.model_dump(exclude_none=True) if plan.budget else {},
        "removed": [
            {"operator": one.operator, "modification": one.modification, "score": one.score, "also": one.also}
            for one in plan.removed
        ],
        "predicted": plan.predicted.model_dump() if plan.predicted else {},
    }


def _show_plan(plan: Plan, as_json: bool) -> None:
    if as_json:
        _print_json(_plan_json(plan))
    else:
        Console().print(tables.plan(plan))


def _show_outcome(outcome: Outcome, run: Path, as_json: bool) -> None:
    if as_json:
        measured = outcome.model_dump(mode="json", exclude={"plan", "comparison"})
        _print_json({**_plan_json(outcome.plan), **outcome.comparison.model_dump(mode="json"), **measured})
        return
    console = Console()
    console.print(tables.outcome(outcome))
    exact = "equal to the bit" if outcome.reload_is_exact else "NOT equal"
    console.print(f"pruned pipeline: {run / 'pruned'} (opened again: latents {exact})", highlight=False)
    if outcome.samples:
        console.print(f"same seeds before and after: {', '.join(map(str, outcome.samples[:1]))}", highlight=False)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value))
