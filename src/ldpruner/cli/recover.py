"""Commands that recover the quality of a pruned pipeline, and prove it."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ldpruner.cli import options as opt
from ldpruner.cli import parsing, tables
from ldpruner.cli.answer import Answer, settings
from ldpruner.cli.console import Table, terminal
from ldpruner.cli.report import with_report
from ldpruner.cli.training_options import TRAINING_OPTIONS

if TYPE_CHECKING:
    from ldpruner.evaluation.evaluate import Evaluation
    from ldpruner.finetuning.settings import History
    from ldpruner.run_folder import Alternative

REPORT_TO = Annotated[
    list[str] | None, typer.Option(help="What Accelerate reports to, such as tensorboard; repeatable.")
]
FEATURES = Annotated[
    str, typer.Option(help="Compare in: latents, inception, or a folder or Hub id of a transformers network.")
]
CLIP = Annotated[str | None, typer.Option(help="A folder or Hub id of a CLIP model, for the CLIP score and CMMD.")]
DINO = Annotated[
    str | None,
    typer.Option(help="A DINO network, such as facebook/dinov2-small, for the distance to the original's samples."),
]
LPIPS = Annotated[
    Literal["alex", "vgg", "squeeze"] | None,
    typer.Option(help="The network of LPIPS, for the distance to the original's samples."),
]
SCORERS = Annotated[
    list[str] | None,
    typer.Option(
        "--scorer", help="A metric of your own: module:function, in the current folder or installed; repeatable."
    ),
]


def finetune(
    *,
    run: opt.RUN,
    data: opt.DATA = None,
    until: opt.UNTIL = None,
    samples: Annotated[
        int | None, typer.Option(help="Of the original, where there is no data. Default: 256.", min=2)
    ] = None,
    prompts: opt.PROMPTS = None,
    pipeline_arg: opt.PIPELINE_ARG = None,
    report_to: REPORT_TO = None,
    device: opt.DEVICE = None,
    dtype: opt.DTYPE = None,
    dry_run: opt.DRY_RUN = False,
    training: TRAINING_OPTIONS,
) -> Answer | None:
    """Train the pruned pipeline of a run folder, with the original as teacher; several processes under a launcher.

    Example: ldpruner finetune --run runs/a --data images/ --max-train-steps 2000 --learning-rate 1e-4

    Example: accelerate launch -m ldpruner finetune --run runs/a
    """
    from ldpruner.finetuning.trainer import SAMPLES
    from ldpruner.recovery import finetune_run
    from ldpruner.run_folder import RunFolder

    folder = RunFolder(run)
    ignored = {"--samples": data and samples, "--prompts": data and prompts}
    parsing.refuse_ignored(ignored, "with --data, the pictures or sounds and their captions are learned from")
    probe = parsing.changed(folder.scores().probe, samples or SAMPLES, prompts, pipeline_arg)
    if dry_run:
        shown = {"training": training.resolved(data=data is not None, steps=probe.steps).model_dump(mode="json")}
        place = {"device": device, "dtype": dtype, "data": str(data) if data else None, "until": until}
        return settings(run=str(run), model=folder.model(), probe=probe.model_dump(mode="json"), **shown, **place)
    history = finetune_run(
        run,
        training,
        data=data,
        until=until,
        probe=probe,
        report_to=report_to or (),
        device=device,
        dtype=dtype,
        progress=terminal.progress,
    )
    return None if history is None else with_report(history_answer(history, run), run)


def evaluate(
    run: opt.RUN,
    data: opt.DATA = None,
    features: FEATURES = "latents",
    clip: CLIP = None,
    dino: DINO = None,
    lpips: LPIPS = None,
    scorer: SCORERS = None,
    samples: Annotated[int, typer.Option(help="Of each pipeline.", min=5)] = 64,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples at once. Default: 16, or 8 where they are decoded.", min=1)
    ] = None,
    alternatives: Annotated[
        bool, typer.Option("--alternatives", help="Also the original with fewer steps, a cache, and int8 weights.")
    ] = False,
    prompts: opt.PROMPTS = None,
    pipeline_arg: opt.PIPELINE_ARG = None,
    device: opt.DEVICE = None,
    dtype: opt.DTYPE = None,
    dry_run: opt.DRY_RUN = False,
) -> Answer:
    """Measure cost and quality of a run's recovered pipeline, or its pruned one, against the original.

    Example: ldpruner evaluate --run runs/a --samples 256 --data images/ --features inception

    Example: ldpruner evaluate --run runs/a --prompts prompts.csv --scorer my_metric:score
    """
    from ldpruner.alternatives import evaluate_alternatives
    from ldpruner.run_folder import RunFolder
    from ldpruner.workflow import evaluate_run

    folder = RunFolder(run)
    probe = parsing.changed(folder.scores().probe, samples, prompts, pipeline_arg)
    folder.check_pruned()
    networks: dict[str, Any] = {"features": features, "clip": clip, "dino": dino, "lpips": lpips}
    if dry_run:
        pipelines = {"original": folder.model(), "pruned": str(folder.latest())}
        place = {"data": str(data) if data else None, "batch_size": batch_size}
        return settings(
            **pipelines,
            **networks,
            **place,
            alternatives=alternatives,
            scorers=scorer,
            probe=probe.model_dump(mode="json"),
            device=device,
            dtype=dtype,
        )
    parsing.import_from_current_folder()
    options: dict[str, Any] = {**networks, "data": data, "scorers": scorer or (), "batch_size": batch_size}
    options |= {"probe": probe, "device": device, "dtype": dtype, "progress": terminal.progress}
    answer = evaluation_answer(evaluate_run(run, **options), folder.latest(), folder.model())
    if alternatives:
        answer = _with_alternatives(answer, evaluate_alternatives(run, **options))
    return with_report(answer, run)


def _with_alternatives(answer: Answer, alternatives: "Sequence[Alternative]") -> Answer:
    """An answer with what else makes the original faster."""
    data = [alternative.model_dump(mode="json") for alternative in alternatives]
    lines = [tables.evaluation_headline(alternative.evaluation, alternative.name) for alternative in alternatives]
    return replace(answer, data={**answer.data, "alternatives": data}, parts=[*answer.parts, *lines])


def history_answer(history: "History", run: Path) -> Answer:
    """How finetuning went."""
    kept = f"{history.steps} steps, the weights of step {history.best_step}"
    parts = [*tables.history(history), f"recovered pipeline: {run / 'recovered'} ({kept})"]
    return Answer(history.model_dump(mode="json"), parts, f"ldpruner evaluate --run {shlex.quote(str(run))}")


def evaluation_answer(evaluation: "Evaluation", pipeline: Path, original: str) -> Answer:
    """Each metric, and what all of them say."""
    parts: list[str | Table] = [
        tables.evaluation_headline(evaluation, pipeline.name),
        *tables.evaluation(evaluation, pipeline.name),
    ]
    run = shlex.quote(str(pipeline.parent))
    then = f"ldpruner bench {shlex.quote(original)} {shlex.quote(str(pipeline))}"
    if pipeline.name == "pruned" and evaluation.worse:
        then = f"ldpruner finetune --run {run}"
    return Answer(evaluation.model_dump(mode="json"), parts, then)
