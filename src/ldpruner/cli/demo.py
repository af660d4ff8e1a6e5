"""The demonstration: the bundled model is pruned, recovers, and is measured."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ldpruner.cli.answer import Answer, settings
from ldpruner.cli.console import terminal
from ldpruner.cli.options import DRY_RUN
from ldpruner.cli.prune import outcome_answer
from ldpruner.cli.recover import evaluation_answer, history_answer
from ldpruner.cli.report import with_report

MODEL, PROMPTS = "zoo:emoji", "prompts.txt"  # captions that it was trained on, in the model's folder
BUDGET: dict[str, Any] = {"latency": 0.7}
GRANULARITY: Any = "branch"  # fewer operators than by default, so that scoring takes a minute or two
PROBE: dict[str, Any] = {"samples": 16, "steps": 10, "guidance": 4.0}
TRAINING: dict[str, Any] = {
    "max_train_steps": 150,
    "train_batch_size": 16,
    "learning_rate": 3e-4,
    "lr_warmup_steps": 10,
    "ema_decay": 0.98,
    "validation_steps": 50,
}
OWN_SAMPLES, EVALUATED = 256, 128


def demo(
    run: Annotated[Path, typer.Option(help="The run folder; the same command again resumes.")] = Path("runs/demo"),
    dry_run: DRY_RUN = False,
) -> Answer:
    """Prune the bundled model to 70 % of its latency and recover its quality: some minutes, nothing is downloaded.

    Example: ldpruner demo
    """
    if dry_run:
        shown = {"budget": BUDGET, "granularity": GRANULARITY, "training": TRAINING, "probe": PROBE}
        return settings(model=MODEL, run=str(run), **shown)
    from ldpruner import Budget, Probe, Training
    from ldpruner.pruning.opening import open_pipeline
    from ldpruner.pruning.serialization import find_folder
    from ldpruner.recovery import finetune_run
    from ldpruner.run_folder import RunFolder
    from ldpruner.workflow import evaluate_run
    from ldpruner.workflow import run as run_all

    folder, original = RunFolder(run), open_pipeline(MODEL)
    probe = Probe(**PROBE, prompts=find_folder(MODEL) / PROMPTS)
    common: dict[str, Any] = {"progress": terminal.progress}
    outcome = run_all(original, Budget(**BUDGET), run=run, probe=probe, model=MODEL, granularity=GRANULARITY, **common)
    common["original"] = original
    history = finetune_run(run, Training(**TRAINING), probe=probe.replace(samples=OWN_SAMPLES), **common)
    assert history is not None  # one process
    evaluation = evaluate_run(run, probe=probe.replace(samples=EVALUATED), **common)
    answers = [
        outcome_answer(outcome, run),
        history_answer(history, run),
        evaluation_answer(evaluation, folder.latest(), MODEL),
    ]
    data = {**answers[0].data, "history": answers[1].data, **answers[2].data}
    parts = [part for answer in reversed(answers) for part in answer.parts]  # the result first
    answer = Answer(data, parts, "ldpruner run YOUR-MODEL --run runs/NAME --budget latency=0.65")
    return with_report(answer, run)
