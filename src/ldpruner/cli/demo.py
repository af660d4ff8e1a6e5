"""The demonstration: the bundled model is pruned, recovers, and is measured."""

from pathlib import Path
from typing import Any

from rich.console import Console

import ldpruner
from ldpruner.cli import tables
from ldpruner.cli.app import DRY, JSON, app, print_json
from ldpruner.cli.prune import outcome_json, run_all, show_outcome
from ldpruner.cli.recover import finetune_run, show_history, write_evaluation
from ldpruner.evaluation.samples import write_samples
from ldpruner.pruning.serialization import load

MODEL = "zoo:satellite"
BUDGET = ldpruner.Budget(latency=0.5)
PROBE = ldpruner.Probe(samples=16, steps=10)
TRAINING = ldpruner.Training(
    max_train_steps=150,
    train_batch_size=16,
    learning_rate=3e-4,
    lr_warmup_steps=10,
    ema_decay=0.98,
    validation_steps=50,
)
OWN_SAMPLES, JUDGED, SHOWN = 256, 128, 8


@app.command()
def demo(run: Path = Path("runs/demo"), as_json: JSON = False, dry_run: DRY = False) -> None:
    """Halve the latency of the bundled model and recover its quality: some minutes, nothing is downloaded.

    Example: ldpruner demo
    """
    if dry_run:
        settings = {"budget": BUDGET.model_dump(exclude_none=True), "training": TRAINING.model_dump()}
        print_json({"model": MODEL, "run": str(run), **settings, "probe": PROBE.model_dump(mode="json")})
        return
    original = load(MODEL)
    outcome = run_all(original, MODEL, run, PROBE, BUDGET)
    if not as_json:
        show_outcome(outcome, run, as_json)
    history = finetune_run(run, TRAINING, PROBE.model_copy(update={"samples": OWN_SAMPLES}))
    assert history is not None  # one process
    recovered = load(run / "recovered")
    found = ldpruner.evaluate(recovered, original, PROBE.model_copy(update={"samples": JUDGED}))
    write_evaluation(found, run)
    stages = {"before": original, "after": load(run / "pruned"), "recovered": recovered}
    sheet = write_samples(stages, PROBE.model_copy(update={"seed": 1}), SHOWN, run / "samples")
    if as_json:
        answers: dict[str, Any] = outcome_json(outcome) | {"history": history.model_dump(mode="json")}
        print_json({**answers, **found.model_dump(mode="json"), "samples": [str(path) for path in sheet]})
        return
    show_history(history, run)
    Console().print(tables.evaluation(found))
    Console().print(f"same seeds before, after and recovered: {sheet[0]}", highlight=False)
