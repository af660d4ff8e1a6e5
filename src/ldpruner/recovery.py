"""Recovering the pruned pipeline of a run folder: for some steps, for some hours, or until it is good enough."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from ldpruner.errors import FinetuningError
from ldpruner.evaluation.evaluate import Evaluation, evaluate
from ldpruner.evaluation.gallery import SHOWN_SAMPLES, Stage, shown_probe, write_samples
from ldpruner.evaluation.measures import METRICS
from ldpruner.evaluation.settings import EVALUATED_SAMPLES
from ldpruner.finetuning.settings import History, Quality, Training
from ldpruner.finetuning.trainer import SAMPLES, Finetuning, MeasureQuality
from ldpruner.pipelines.probe import Probe
from ldpruner.progress import Progress, reported, unreported
from ldpruner.pruning.opening import open_pipeline
from ldpruner.pruning.saving import save
from ldpruner.run_folder import RunFolder
from ldpruner.values import Value, check_choice
from ldpruner.workflow import evaluate_run

ORIGINAL = "original"
GOAL = re.compile(r"\s*(\w+)\s*(<=|>=)\s*(\S+)\s*")


class Goal(Value):
    """How good a pruned pipeline shall become.

    Attributes:
        metric: of `evaluate`.
        higher_is_better: whether the limit is the least value, not the largest.
        limit: the value; None is that of the original, or its noise floor where each sample is compared with the
            original's.
    """

    metric: str
    higher_is_better: bool
    limit: float | None

    def quality(self, evaluation: Evaluation) -> Quality:
        """How good an evaluated pipeline is.

        Raises:
            FinetuningError: the metric does not apply to the pipeline.
        """
        measures = {measure.metric: measure for measure in evaluation.metrics}
        measure = measures.get(self.metric)
        if measure is None or measure.pruned is None:
            raise FinetuningError(f"{self.metric} does not apply to this pipeline; measured: {', '.join(measures)}")
        original = measure.noise_floor if measure.original is None else measure.original
        limit = original if self.limit is None else self.limit
        value = float(measure.pruned)
        reached = limit is not None and (value >= limit if self.higher_is_better else value <= limit)
        return Quality(value=value, reached=reached, higher_is_better=self.higher_is_better)


def parse_goal(text: str) -> Goal:
    """A goal from text such as `frechet_distance<=original` or `ssim>=0.9`.

    Raises:
        FinetuningError: it is no such text, or there is no such metric.
    """
    match = GOAL.fullmatch(text)
    try:
        metric, sign, limit = match.groups() if match is not None else ("", "", "")
        value = None if limit == ORIGINAL else float(limit)
    except ValueError:
        raise FinetuningError(
            f"until={text!r}: give METRIC<=VALUE or METRIC>=VALUE; VALUE is a number or `original`"
        ) from None
    check_choice("metric", metric, METRICS, FinetuningError)
    return Goal(metric=metric, higher_is_better=sign == ">=", limit=value)


def quality_measure(goal: Goal, probe: Probe) -> MeasureQuality:
    """Evaluates the goal's metric with the samples of a probe."""

    def measure(pruned: DiffusionPipeline, teacher: DiffusionPipeline) -> Quality:
        return goal.quality(evaluate(pruned, teacher, probe, metrics=[goal.metric]))

    return measure


def finetune_run(  # noqa: PLR0913  (each is a choice of its own)
    run: Path | str,
    training: Training | None = None,
    *,
    data: Path | str | None = None,
    until: str | None = None,
    probe: Probe | None = None,
    original: DiffusionPipeline | None = None,
    report_to: Sequence[str] = (),
    device: str | None = None,
    dtype: str | None = None,
    progress: Progress = unreported,
) -> History | None:
    """Trains the pruned pipeline of a run folder, with the original as teacher, and saves it as `recovered/`.

    Returns how training went, which is also kept as `finetuning.json`; None in all processes of a launcher but the
    first.

    Args:
        training: how long, how fast, by which losses.
        data: a folder of pictures or sounds; None learns from samples of the original.
        until: a metric of `evaluate` and a limit, such as `frechet_distance<=original`. It is measured at each
            validation, on 64 samples in latents; the best weights by it are kept, and training stops at the limit.
        probe: how the original is called; None is the probe of the scores, with 256 samples.
        original: of the run folder; None opens it with `device` and `dtype` (see `open_pipeline`).
        report_to: trackers of Accelerate, such as `tensorboard`.

    Raises:
        FinetuningError: the pipeline, the data or the settings do not fit.
    """
    folder, goal = RunFolder(run), parse_goal(until) if until is not None else None
    with folder.writing(folder.recovered):
        folder.check_pruned()
        scores = folder.scores()
        teacher = folder.open_original(original, device, dtype, progress)
        pruned = open_pipeline(folder.pruned, "cpu", dtype)
        probe = probe or scores.probe.replace(samples=SAMPLES)
        options: dict[str, Any] = {"component": scores.component, "training": training, "report_to": report_to}
        if goal is not None:
            options["quality"] = quality_measure(goal, scores.probe.replace(samples=EVALUATED_SAMPLES))
        work = reported(
            progress,
            "preparing examples",
            lambda: Finetuning(pruned, teacher, data, probe=probe, run=folder.path, **options),
        )
        for _ in (progress if work.is_first else unreported)(work, "finetuning"):
            pass
        history = work.finish()
        if work.is_first:
            work.write_adapter(folder.lora)
            save(pruned, folder.recovered)
            folder.write_history(history)
            shown = functools.partial(_write_samples, folder, teacher, pruned, scores.probe)
            reported(progress, "writing samples", shown)
    return history if work.is_first else None


def _write_samples(folder: RunFolder, teacher: DiffusionPipeline, recovered: DiffusionPipeline, probe: Probe) -> None:
    """Adds samples of the recovered pipeline to those of the run; without any, also of the original."""
    pipelines: dict[Stage, DiffusionPipeline] = {"recovered": recovered}
    has_others = folder.has_samples
    if not has_others:
        pipelines["original"] = teacher
    write_samples(pipelines, shown_probe(probe), SHOWN_SAMPLES, folder.samples, keep=has_others)


def recover_run(
    run: Path | str,
    training: Training | None = None,
    *,
    data: Path | str | None = None,
    until: str | None = None,
    original: DiffusionPipeline | None = None,
    progress: Progress = unreported,
) -> tuple[History | None, Evaluation]:
    """Finetunes the pruned pipeline of a run folder and evaluates it; see `finetune_run` and `evaluate_run`."""
    options: dict[str, Any] = {"original": original, "progress": progress}
    history = finetune_run(run, training, data=data, until=until, **options)
    return history, evaluate_run(run, **options)
