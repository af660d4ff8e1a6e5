"""A whole run from a recipe: what it would take, or all of it."""

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ldpruner.cli import parsing, tables
from ldpruner.cli.app import JSON, app, open_pipeline, print_json
from ldpruner.cli.prune import outcome_json, run_all, show_outcome
from ldpruner.cli.recover import evaluate_run, finetune_run, show_history
from ldpruner.errors import PipelineNotFound
from ldpruner.evaluation.evaluate import Evaluation
from ldpruner.finetuning import History
from ldpruner.pipelines.probe import Probe
from ldpruner.pruning.serialization import load_meta
from ldpruner.recipe_cost import TFLOPS, Estimate, estimate
from ldpruner.recipes import Recipe, read_recipe
from ldpruner.workflow import Outcome

STAGES = ("prune", "finetune", "evaluate")
NOTE = (
    "an estimate by arithmetic alone: 2 FLOP a MAC at a sustained {tflops:g} TFLOP/s on one GPU; "
    "decoding, encoding, looks at held-out examples and timing are not counted"
)


@app.command("recipe")
def recipe_command(
    file: Annotated[Path, typer.Argument(help="A recipe in YAML, such as those of recipes/.")],
    only: Annotated[str | None, typer.Option(help=f"One part of it: {', '.join(STAGES)}.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="For a dry run: a folder with the model's configuration files.")
    ] = None,
    tflops: Annotated[
        float, typer.Option(help="For a dry run: what the GPU sustains, in TFLOP/s.", min=0.001)
    ] = TFLOPS,
    as_json: JSON = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the recipe and tell what it would take.")] = False,
) -> None:
    """Run a recipe: score, select, prune, finetune, evaluate. The same command again resumes.

    Example: ldpruner recipe recipes/sd14-coco.yaml --dry-run

    Example: accelerate launch -m ldpruner recipe recipes/sd14-coco.yaml --only finetune
    """
    wanted = STAGES if only is None else (parsing.one_of(only, STAGES, "--only"),)
    recipe = read_recipe(file)
    if dry_run:
        _show_estimate(recipe, _estimated(recipe, config, tflops), as_json)
        return
    if wanted != ("finetune",) and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise typer.BadParameter("several processes share the training only; add --only finetune")
    recipe.check_files()
    answers = _carried_out(recipe, wanted, as_json)
    if as_json and answers:
        print_json(answers)


def _carried_out(recipe: Recipe, wanted: Collection[str], as_json: bool) -> dict[str, Any]:
    """Does the wanted parts, and says of each what it gave; None for a pruning that was done before."""
    answers: dict[str, Any] = {}
    if "prune" in wanted:
        outcome = _prune(recipe)
        answers["prune"] = outcome_json(outcome) if outcome is not None else None
        if outcome is not None and not as_json:
            show_outcome(outcome, recipe.run, as_json)
    if "finetune" in wanted and (history := _finetune(recipe)) is not None:
        answers["finetune"] = history.model_dump(mode="json")
        if not as_json:
            show_history(history, recipe.run)
    if "evaluate" in wanted:
        found = _evaluate(recipe)
        answers["evaluate"] = found.model_dump(mode="json")
        if not as_json:
            Console().print(tables.evaluation(found))
    return answers


def _prune(recipe: Recipe) -> Outcome | None:
    if recipe.was_pruned():
        return None
    pipeline = open_pipeline(recipe.model, recipe.device, recipe.dtype)
    probe = _with_images(recipe).probe.probe()
    choices: dict[str, Any] = {"metric": recipe.metric, "rule": recipe.rule, "exhaustive": recipe.exhaustive}
    options: dict[str, Any] = {"component": recipe.component, "batch": recipe.batch, **choices}
    outcome = run_all(pipeline, recipe.model, recipe.run, probe, recipe.budget, **options)
    recipe.mark_pruned()
    return outcome


def _finetune(recipe: Recipe) -> History | None:
    probe = _with_images(recipe).probe.probe().model_copy(update={"samples": recipe.examples})
    place: dict[str, Any] = {"device": recipe.device, "dtype": recipe.dtype}
    return finetune_run(recipe.run, recipe.training, probe, data=recipe.data, **place)


def _evaluate(recipe: Recipe) -> Evaluation:
    asked = recipe.evaluation
    probe = _with_images(recipe).probe.probe().model_copy(update={"samples": asked.samples})
    if asked.prompts is not None:
        probe = probe.model_copy(update={"prompts": Probe(prompts=asked.prompts).prompts})
    options: dict[str, Any] = {"data": asked.data, "features": asked.features, "clip": asked.clip}
    place: dict[str, Any] = {"device": recipe.device, "dtype": recipe.dtype}
    return evaluate_run(recipe.run, recipe.model, probe, **place, **options, batch_size=asked.batch)


def _estimated(recipe: Recipe, config: Path | None, tflops: float) -> Estimate:
    try:
        pipeline = load_meta(config or recipe.model)
    except PipelineNotFound as error:
        hint = "" if config else "; or give a folder with its configuration files: --config FOLDER"
        raise PipelineNotFound(f"{error}{hint}") from error
    return estimate(_with_images(recipe), pipeline, tflops=tflops)


def _with_images(recipe: Recipe) -> Recipe:
    """The recipe with the images that its call names by their paths."""
    call = parsing.call_arguments([f"{name}={json.dumps(value)}" for name, value in recipe.probe.call.items()])
    return recipe.model_copy(update={"probe": recipe.probe.model_copy(update={"call": call})})


def _show_estimate(recipe: Recipe, found: Estimate, as_json: bool) -> None:
    missing = {field: str(path) for field, path in recipe.missing.items()}
    note = NOTE.format(tflops=found.tflops)
    if as_json:
        settings = recipe.model_dump(mode="json", exclude_none=True)
        print_json({"recipe": settings, **found.model_dump(mode="json"), "missing": missing, "note": note})
        return
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for line in _facts(recipe, found):
        console.print(line)
    console.print(_table(found))
    console.print(note)
    for field, path in missing.items():
        console.print(f"missing: {field}={path}")


def _facts(recipe: Recipe, found: Estimate) -> tuple[str, ...]:
    rows = f"{found.rows} row{'s' if found.rows > 1 else ''} for a sample"
    return (
        f"{recipe.model}: {found.parameters / 1e6:,.1f} M parameters, {found.macs / 1e9:,.1f} GMACs a row, {rows}",
        f"{found.operators:,} operators, {found.modifications:,} modifications; budget: {recipe.budget}",
    )


def _table(found: Estimate) -> Table:
    table = Table("", header_style="bold")
    for column in ("denoiser calls", "PMACs", "GPU hours"):
        table.add_column(column, justify="right")
    for name, stage in found.stages.items():
        table.add_row(name, f"{stage.calls:,}", f"{stage.macs / 1e15:,.1f}", f"{stage.hours:,.2f}")
    return table
