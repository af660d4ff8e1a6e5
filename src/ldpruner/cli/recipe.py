"""A whole run from a recipe: what it would take, or all of it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from ldpruner.cli.answer import Answer
from ldpruner.cli.console import terminal
from ldpruner.cli.options import GPU, TFLOPS
from ldpruner.cli.parsing import check_speed, import_from_current_folder, refuse_ignored
from ldpruner.cli.prune import outcome_answer
from ldpruner.cli.recover import evaluation_answer, history_answer

if TYPE_CHECKING:
    from ldpruner.recipes import Recipe

StageName = Literal["prune", "finetune", "evaluate"]


def recipe(
    file: Annotated[Path, typer.Argument(help="A recipe in YAML, such as those of recipes/.")],
    only: Annotated[StageName | None, typer.Option(help="One part of it.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="For a dry run: a folder with the model's configuration files.")
    ] = None,
    gpu: GPU = None,
    tflops: TFLOPS = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the recipe and say what it would take.")] = False,
) -> Answer:
    """Run a recipe: score, select, prune, finetune, evaluate. The same command again resumes.

    Example: ldpruner recipe recipes/sd14-coco.yaml --dry-run

    Example: accelerate launch -m ldpruner recipe recipes/sd14-coco.yaml --only finetune
    """
    from ldpruner.recipes import carry_out, read_recipe

    refuse_ignored({"--config": config and not dry_run}, "it is for --dry-run")
    check_speed(gpu, tflops, dry_run=dry_run)
    refuse_ignored({"--only": only and dry_run}, "--dry-run counts all parts")
    read = read_recipe(file)
    if dry_run:
        return _estimate_answer(read, file, config, gpu, tflops)
    if only != "finetune" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise typer.BadParameter("several processes share the training only; add --only finetune")
    import_from_current_folder()
    data: dict[str, Any] = {}
    parts: list[Any] = []
    for stage, result in carry_out(read, (only,) if only else get_args(StageName), progress=terminal.progress):
        answer = _stage_answer(read, stage, result)
        data[stage] = answer.data
        parts += answer.parts
    return Answer(data, parts, f"ldpruner evaluate --run {read.run}" if only == "finetune" else "")


def _stage_answer(recipe: "Recipe", stage: str, result: Any) -> Answer:
    from ldpruner.run_folder import RunFolder

    if result is None:
        return Answer(None, ["pruned before: the plan is kept"] if stage == "prune" else [])
    if stage == "prune":
        return outcome_answer(result, recipe.run)
    if stage == "finetune":
        return history_answer(result, recipe.run)
    return evaluation_answer(result, RunFolder(recipe.run).latest(), recipe.model)


def _estimate_answer(
    recipe: "Recipe", file: Path, config: Path | None, gpu: str | None, tflops: float | None
) -> Answer:
    from ldpruner.cli import forecast
    from ldpruner.errors import PipelineNotFound
    from ldpruner.pruning.serialization import load_meta
    from ldpruner.recipes import estimate_recipe

    try:
        pipeline = load_meta(config or recipe.model)
    except PipelineNotFound as error:
        hint = "" if config else "; or give a folder with its configuration files: --config FOLDER"
        raise PipelineNotFound(f"{error}{hint}") from error
    speed, note = forecast.sustained(gpu, tflops)
    estimate = estimate_recipe(recipe, pipeline, tflops=speed)
    missing = {field: str(path) for field, path in recipe.missing.items()}
    settings = recipe.model_dump(mode="json", exclude_none=True)
    return Answer(
        {"recipe": settings, **estimate.model_dump(mode="json"), "missing": missing, "note": note},
        [
            f"{forecast.counted(recipe.model, estimate)}; budget: {recipe.budget}",
            forecast.stages(estimate.stages),
            note,
            *(f"missing: {field}={path}" for field, path in missing.items()),
        ],
        f"ldpruner recipe {file}",
    )
