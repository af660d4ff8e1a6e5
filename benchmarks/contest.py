"""What is the same for ld-pruner and all its rivals: their names, the scores, the training, what is measured."""

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

import ldpruner
from benchmarks.criteria import RIVALS
from benchmarks.subjects import Subject
from ldpruner.finetuning import Finetuning, Training
from ldpruner.operators.discovery import denoiser_macs
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pipelines.running import schedulers
from ldpruner.pipelines.sampling import draw_latents
from ldpruner.profiling.benchmark import Percentiles
from ldpruner.profiling.costs import timed_ms
from ldpruner.scoring.results import Scores
from ldpruner.scoring.runner import Scoring
from zoo.digits import DIGITS
from zoo.emoji import EMOJI
from zoo.recipe import Recipe
from zoo.satellite import SATELLITE

CUTS = (0.5, 0.35, 0.65)  # of the latency
SAMPLES, SCORING_STEPS = 8, 6  # of ld-pruner's probe
STEPS = 10  # with which pictures are drawn and timed
DRAWING_STEPS = 25  # with which the original draws what is learnt from
ROUNDS = 25  # pairs of timings
RECIPES: Mapping[str, Recipe] = {"satellite": SATELLITE, "emoji": EMOJI, "digits": DIGITS}
OWN_SAMPLES = 1024  # of the original, where there is no data
# optimizer steps: at most a few per cent of what the denoiser was trained with, so that a cell takes minutes
BUDGETS = {"satellite": 500, "emoji": 300, "digits": 500}
RATES = {"satellite": 1e-4, "emoji": 3e-4, "digits": 3e-4}
# the same for every rival; early stopping would give some of them fewer steps than others
SETTINGS: dict[str, Any] = {
    "train_batch_size": 32,
    "lr_warmup_steps": 20,
    "ema_decay": 0.99,
    "early_stopping_patience": None,
    "validation_steps": 50,
}
PICTURES = 256

OURS, ORIGINAL, FEWER = "ld-pruner", "original", "fewer steps"
NO_DATA, NEW_WEIGHTS = "ld-pruner without data", "ld-pruner with new weights"
GUIDED, PLAIN = "ld-pruner with autoguidance", "ld-pruner with a plain loss"
ALL_LOSSES = "ld-pruner with all losses"  # which `ldpruner finetune` has by default
TAUGHT, LED = "ld-pruner taught", "ld-pruner taught with autoguidance"  # in headlines only
SAME_PLAN = (NO_DATA, GUIDED, NEW_WEIGHTS, PLAIN, ALL_LOSSES)  # as ld-pruner: they differ in what comes after
OPERATORS = {OURS if name == "knapsack" else name: one for name, one in RIVALS.items()}
CHANNELS = ("channels by magnitude", "channels by Taylor")
NAMES = (*OPERATORS, *CHANNELS, FEWER, ORIGINAL, *SAME_PLAN)
# what is measured at every cut; all else only where half is removed, unless asked for
EVERYWHERE = (OURS, "paper", "random", "hand rule", ORIGINAL, PLAIN)
AUTOGUIDANCE = 1.0  # unless a headline says otherwise
FEATURES = 0.1  # weight of the original's features, where it teaches


@dataclasses.dataclass(frozen=True)
class Bench:
    """A model with what is the same for all its rivals.

    Attributes:
        subject: the model, its judge and data.
        folder: for scores, examples and checkpoints.
        training: of each rival.
        first: steps of plain training before it; what they make is the weaker version that it is led away from.
        plans_anew: whether variants of ld-pruner plan for the machine at hand, instead of taking the plan of its cell.
        pictures: that measure each.
        device: where rivals are finetuned and drawn. Each is made and timed where the model is.
    """

    subject: Subject
    folder: Path
    training: Training
    pictures: int
    device: str
    first: int = 0
    plans_anew: bool = False

    @contextmanager
    def on_device(self, pipeline: DiffusionPipeline) -> Iterator[None]:
        """The model and a rival are on the device, until the context ends."""
        pair, place = (self.subject.pipeline, pipeline), pipeline.device
        for one in pair:
            one.to(self.device)
        try:
            yield
        finally:
            for one in pair:
                one.to(place)

    def probe(self, seed: int) -> ldpruner.Probe:
        return self.subject.probe(SAMPLES, STEPS, seed)

    def scores(self, seed: int) -> Scores:
        """ld-pruner's, on a probe of this seed; those of the original are kept in the folder."""
        probe = self.subject.probe(SAMPLES, SCORING_STEPS, seed)
        with Scoring(self.subject.pipeline, None, probe, run=self.folder / f"scores-{seed}") as scoring:
            for _ in scoring:
                pass
            return scoring.scores()

    def training_of(self, name: str, seed: int, *, first: bool = False) -> Training:
        """A rival's training: on the task, by the original or by both; the first is not led.

        What is led away from a weaker version has other features than the original.
        """
        led, taught = name in (GUIDED, LED) and not first, name in (NO_DATA, TAUGHT, LED)
        losses = {
            "task": float(not taught),
            "output": float(taught or name == ALL_LOSSES),
            "features": FEATURES * (name in (TAUGHT, LED, ALL_LOSSES) and not led),
            "autoguidance_scale": led * (self.training.autoguidance_scale or AUTOGUIDANCE),
        }
        steps = self.first if first else self.training.max_train_steps
        return self.training.model_copy(
            update={"seed": seed, "max_train_steps": steps, "snr_weighting": name != PLAIN, **losses}
        )

    def names(self, cut: float) -> tuple[str, ...]:
        """What is measured of this model when a share of the latency is removed."""
        known = NAMES if cut == CUTS[0] else EVERYWHERE
        return tuple(name for name in known if name != PLAIN or self.finds_noise)

    @property
    def finds_noise(self) -> bool:
        """Whether noise levels can be balanced: errors in a velocity count alike."""
        return bool(schedulers(self.subject.pipeline)[0].config.prediction_type == "epsilon")

    def idle(self, training: Training) -> set[str]:
        """Settings that change nothing here, of which older cells know nothing."""
        used = {
            "autoguidance_scale": training.autoguidance_scale > 0,
            "guidance_interval": training.guidance_interval != (0.0, 1.0),
            "snr_weighting": self.finds_noise,
        }
        return {name for name, is_used in used.items() if not is_used}

    def finetuning(
        self, pipeline: DiffusionPipeline, training: Training, place: str, *, data: bool = True
    ) -> Finetuning:
        """The training of a pruned pipeline; all share their examples."""
        run, shared = self.folder / "cells" / place, self.folder / "examples"
        run.mkdir(parents=True, exist_ok=True)
        shared.mkdir(exist_ok=True)
        if not (run / "examples").exists():
            (run / "examples").symlink_to(shared.resolve())
        probe = self.probe(training.seed).model_copy(update={"samples": OWN_SAMPLES, "steps": DRAWING_STEPS})
        rows = self.subject.train if data else None
        return Finetuning(pipeline, self.subject.pipeline, rows, probe=probe, training=training, run=run)

    def latency(self, pipeline: DiffusionPipeline, steps: int, seed: int) -> Percentiles:
        """The time of drawing one sample's latents over the original's, in turn.

        On a processor it is the time that this process was given: others on the machine do not count. With one thread
        on an idle machine it is the latency.
        """
        probe = self.probe(seed)
        other = probe.model_copy(update={"steps": steps})
        pairs = [(_timed(self.subject.pipeline, probe), _timed(pipeline, other)) for _ in range(ROUNDS + 1)]
        return Percentiles.of([second / first for first, second in pairs[1:]])

    def costs(self, pipeline: DiffusionPipeline, steps: int, seed: int) -> dict[str, Any]:
        pair = [find_denoiser(one) for one in (self.subject.pipeline, pipeline)]
        macs = [denoiser_macs(one) for one in pair]
        statistic = "of pairs in turn; processor time of one thread" if pipeline.device.type == "cpu" else "of pairs"
        return {
            "latency_ratio": self.latency(pipeline, steps, seed).model_dump(),
            "statistic": statistic,
            "parameters": count_parameters(pair[1].module),
            "original_parameters": count_parameters(pair[0].module),
            "macs": macs[1],
            "original_macs": macs[0],
        }

    def compute(self, name: str, kept: float) -> float:
        """Finetuning's share of the denoiser's training: backwards counts as two calls, whoever teaches as one."""
        recipe = RECIPES[self.subject.name]
        schedules = (recipe.denoiser_schedule, recipe.refinement_schedule)
        trained = sum(schedule.steps * schedule.batch for schedule in schedules if schedule)
        calls = 0.0
        for training in (self.training_of(name, 0), self.training_of(name, 0, first=True)):
            calls += training.max_train_steps * (
                3 * kept + training.is_taught + kept * (training.autoguidance_scale > 0)
            )
        return calls * self.training.train_batch_size / (3 * trained)


def usual_training(model: str) -> Training:
    return Training(max_train_steps=BUDGETS[model], learning_rate=RATES[model], **SETTINGS)


def _timed(pipeline: DiffusionPipeline, probe: ldpruner.Probe) -> float:
    if pipeline.device.type != "cpu":
        return timed_ms(lambda: draw_latents(pipeline, probe, [0]), pipeline.device)
    started = time.process_time()
    draw_latents(pipeline, probe, [0])
    return time.process_time() - started
