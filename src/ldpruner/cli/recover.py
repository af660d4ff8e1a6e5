"""Commands that recover the quality of a pruned pipeline, and prove it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ldpruner.cli import parsing, tables
from ldpruner.cli.app import (
    CALL,
    DEVICE,
    DRY,
    DTYPE,
    JSON,
    PROMPTS,
    RUN,
    app,
    fact,
    known_scores,
    open_pipeline,
    print_json,
    progress,
)
from ldpruner.errors import PipelineNotFound, StorageError
from ldpruner.evaluation.evaluate import Evaluation, evaluate
from ldpruner.finetuning import Finetuning, History, Training
from ldpruner.finetuning.trainer import SAMPLES
from ldpruner.pipelines.probe import Probe
from ldpruner.pruning.serialization import load, save

DATA = Annotated[
    Path | None,
    typer.Option(help="A folder of pictures or sounds to learn from. Default: samples of the original."),
]
TRAINING = Annotated[
    list[str] | None, typer.Option(help="A setting of the training, such as steps=2000 or rate=1e-4; repeatable.")
]
TRACKER = Annotated[
    list[str] | None, typer.Option(help="What Accelerate reports to, such as tensorboard; repeatable.")
]


@app.command("finetune")
def finetune_command(
    run: RUN,
    data: DATA = None,
    training: TRAINING = None,
    samples: Annotated[int, typer.Option(help="Of the original, where there is no data.", min=2)] = SAMPLES,
    prompts: PROMPTS = None,
    call: CALL = None,
    tracker: TRACKER = None,
    device: DEVICE = None,
    dtype: DTYPE = None,
    as_json: JSON = False,
    dry_run: DRY = False,
) -> None:
    """Train the pruned pipeline of a run folder, with the original as teacher; several processes under a launcher.

    Example: ldpruner finetune --run runs/a --data images/ --training steps=2000,rate=1e-4

    Example: accelerate launch -m ldpruner finetune --run runs/a
    """
    settings, model = parsing.training_of(training), fact(run, "model")
    probe = parsing.changed(known_scores(run).probe.model_copy(update={"samples": samples}), prompts, call)
    if dry_run:
        resolved = {"model": model, "data": str(data) if data else None, "training": settings.model_dump()}
        print_json({"run": str(run), **resolved, "probe": probe.model_dump(mode="json")})
        return
    history = finetune_run(run, settings, probe, data=data, report_to=tracker or (), device=device, dtype=dtype)
    if history is None:
        return
    if as_json:
        print_json(history.model_dump(mode="json"))
    else:
        show_history(history, run)


def finetune_run(
    run: Path,
    settings: Training,
    probe: Probe,
    *,
    data: Path | None = None,
    report_to: Sequence[str] = (),
    device: str | None = None,
    dtype: str | None = None,
) -> History | None:
    """Trains the pruned pipeline of a run folder, with a progress bar; None in all processes but the first."""
    check_pruned(run)
    teacher = open_pipeline(fact(run, "model"), device, dtype)
    pruned = load(run / "pruned", torch_dtype=parsing.precision(dtype))
    component = known_scores(run).component
    work = Finetuning(
        pruned, teacher, data, probe=probe, component=component, training=settings, run=run, report_to=report_to
    )
    for _ in progress(work, "finetuning") if work.is_first else work:
        pass
    history = work.finish()
    if not work.is_first:
        return None
    save(pruned, run / "recovered")
    return history


def show_history(history: History, run: Path) -> None:
    """Prints how finetuning went."""
    Console().print(tables.history(history))
    kept = f"{history.steps} steps, the weights of step {history.best_step} are kept"
    Console().print(f"recovered pipeline: {run / 'recovered'} ({kept})", highlight=False)


@app.command("evaluate")
def evaluate_command(
    run: RUN,
    data: Annotated[
        Path | None, typer.Option(help="A folder to compare with. Default: samples of the original.")
    ] = None,
    features: Annotated[
        str, typer.Option(help="Compare in: latents, inception, or a folder or Hub id of a transformers network.")
    ] = "latents",
    clip: Annotated[str | None, typer.Option(help="A folder or Hub id of a CLIP model, for the CLIP score.")] = None,
    samples: Annotated[int, typer.Option(help="Of each pipeline.", min=2)] = 64,
    batch: Annotated[
        int | None, typer.Option(help="Samples drawn at once. Default: 16, or 8 where they are decoded.", min=1)
    ] = None,
    prompts: PROMPTS = None,
    call: CALL = None,
    device: DEVICE = None,
    dtype: DTYPE = None,
    as_json: JSON = False,
    dry_run: DRY = False,
) -> None:
    """Measure cost and quality of a run's recovered pipeline, or its pruned one, beside the original.

    Example: ldpruner evaluate --run runs/a --samples 256 --data images/ --features inception
    """
    model = fact(run, "model")
    probe = parsing.changed(known_scores(run).probe.model_copy(update={"samples": samples}), prompts, call)
    check_pruned(run)
    if dry_run:
        resolved = {"original": model, "pruned": str(latest(run)), "data": str(data) if data else None, "clip": clip}
        print_json({**resolved, "features": features, "probe": probe.model_dump(mode="json")})
        return
    networks: dict[str, Any] = {"features": features, "clip": clip, "device": device, "dtype": dtype}
    found = evaluate_run(run, model, probe, data=data, **networks, batch_size=batch)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        Console().print(tables.evaluation(found))


def evaluate_run(
    run: Path, model: str, probe: Probe, *, device: str | None, dtype: str | None, **options: Any
) -> Evaluation:
    """Evaluates the latest pipeline of a run folder beside its original, and keeps what is found there."""
    component = known_scores(run).component
    check_pruned(run)
    pair = (open_pipeline(latest(run), device, dtype), open_pipeline(model, device, dtype))
    found = evaluate(*pair, probe, component=component, **options)
    write_evaluation(found, run)
    return found


def write_evaluation(found: Evaluation, run: Path) -> None:
    """Keeps an evaluation in the run folder, with the name of the pipeline that it is of."""
    path = run / "evaluation.json"
    written = {"pipeline": latest(run).name, **found.model_dump(mode="json")}
    try:
        path.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def latest(run: Path) -> Path:
    """The recovered pipeline of a run folder, if it is of the pruned one that is there now; else the pruned one."""
    kept = [_removals(run / name) for name in ("recovered", "pruned")]
    return run / ("recovered" if kept[0] == kept[1] else "pruned")


def _removals(folder: Path) -> list[Any]:
    configs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/config.json"))]
    return [config["removals"] for config in configs if "removals" in config]


def check_pruned(run: Path) -> None:
    """Raises where a run folder has no pruned pipeline."""
    if not (run / "pruned").is_dir():
        raise PipelineNotFound(f"no pruned pipeline in {run}; make one with 'ldpruner prune --run {run}'")
