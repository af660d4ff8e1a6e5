"""What all methods of the comparison share: names, scores, training, latency, compute."""

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

import ldpruner
from benchmarks.criteria import CRITERIA, Planner
from benchmarks.models import EARLIER, Model
from ldpruner.finetuning import Training
from ldpruner.finetuning.trainer import Finetuning
from ldpruner.operators.discovery import denoiser_macs
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pipelines.running import schedulers
from ldpruner.pipelines.sampling import sample_latents
from ldpruner.profiling.benchmark import Percentiles
from ldpruner.profiling.costs import elapsed_ms
from ldpruner.scoring.results import Scores
from ldpruner.scoring.runner import ScoringRun
from zoo.digits import DIGITS
from zoo.emoji import EMOJI
from zoo.recipe import Recipe
from zoo.satellite import SATELLITE

CUTS = (0.5, 0.35, 0.65)  # of the latency
SCORING_SAMPLES, SCORING_STEPS = 8, 6
STEPS = 10  # of the pictures that are measured and timed
OWN_SAMPLES, OWN_STEPS = 1024, 25  # of the original, for finetuning without data
ROUNDS = 9  # pairs of timings
PICTURES = 256
RECIPES: Mapping[str, Recipe] = {"satellite": SATELLITE, "emoji": EMOJI, "digits": DIGITS}
# a few per cent of what the denoiser was trained with at most, so that a cell takes minutes
TRAIN_STEPS = {"satellite": 500, "emoji": 200, EARLIER: 300, "digits": 500}
BATCH_SIZES = {"satellite": 32, "emoji": 16, EARLIER: 32, "digits": 32}
LEARNING_RATES = {"satellite": 1e-4, "emoji": 3e-4, EARLIER: 3e-4, "digits": 3e-4}
# no early stopping, which would give some methods fewer steps than others
SETTINGS: Mapping[str, Any] = {
    "lr_warmup_steps": 20,
    "ema_decay": 0.99,
    "early_stopping_patience": None,
    "validation_steps": 50,
}
# the low-rank factors begin at zero, and need larger steps; the adapter is merged by the benchmark
LORA_SETTINGS: Mapping[str, Any] = {"adapter": "lora", "rank": 32, "learning_rate": 1e-3, "merge_adapter": False}
AUTOGUIDANCE_SCALE = 1.0  # unless the training of a cell has another
FEATURE_KD_WEIGHT = 0.1

OURS, ORIGINAL, FEWER_STEPS = "ld-pruner", "original", "fewer steps"
NO_DATA, REINITIALISED = "ld-pruner without data", "ld-pruner reinitialised"
AUTOGUIDED, PLAIN_LOSS = "ld-pruner with autoguidance", "ld-pruner without SNR weighting"
WITH_DISTILLATION = "ld-pruner with distillation"  # the default losses of `ldpruner finetune`
LORA = "ld-pruner with LoRA"
# in long finetuning only
DISTILLED, DISTILLED_AUTOGUIDED = "ld-pruner distilled", "ld-pruner distilled with autoguidance"
SAME_PLAN = (NO_DATA, AUTOGUIDED, REINITIALISED, PLAIN_LOSS, WITH_DISTILLATION, LORA)  # they differ in finetuning only
CHANNELS = ("channels by magnitude", "channels by Taylor")
NEWER = ("use_8bit_adam", "adapter", "rank", "merge_adapter", "teacher", "timesteps", "max_hours")  # than the cells
METHODS = (*CRITERIA, *CHANNELS, FEWER_STEPS, ORIGINAL, *SAME_PLAN)
AT_EVERY_CUT = (OURS, "greedy (paper)", "random", "BK-SDM", ORIGINAL, PLAIN_LOSS)


@dataclasses.dataclass(frozen=True)
class Bench:
    """A model, and what all methods on it share.

    Attributes:
        model: the model, its feature network and data.
        folder: for scores, examples and checkpoints.
        training: of each method.
        pictures: that measure each method.
        device: for finetuning and sampling. Pruning and timing happen where the model is.
        distillation_steps: steps of distillation before autoguidance, which make the weak model.
        own_samples: of the original, for finetuning without data.
        replan: whether variants of ld-pruner get plans of their own, for this machine, instead of ld-pruner's.
        planners: that were made, by method and seed.
    """

    model: Model
    folder: Path
    training: Training
    pictures: int
    device: str
    distillation_steps: int = 0
    replan: bool = False
    own_samples: int = OWN_SAMPLES
    planners: dict[tuple[str, int], Planner] = dataclasses.field(default_factory=dict)

    @contextmanager
    def on_device(self, pipeline: DiffusionPipeline) -> Iterator[None]:
        """Moves the model and a pruned pipeline to the device until the context ends."""
        pair, place = (self.model.pipeline, pipeline), pipeline.device
        for part in pair:
            part.to(self.device)
        try:
            yield
        finally:
            for part in pair:
                part.to(place)

    def probe(self, seed: int) -> ldpruner.Probe:
        return self.model.probe(SCORING_SAMPLES, STEPS, seed)

    def scores(self, seed: int) -> Scores:
        """ld-pruner's scores of all operators, which the folder keeps."""
        probe = self.model.probe(SCORING_SAMPLES, SCORING_STEPS, seed)
        with ScoringRun(self.model.pipeline, None, probe, run=self.folder / f"scores-{seed}") as scoring:
            for _ in scoring:
                pass
            return scoring.scores()

    def training_of(self, method: str, seed: int, *, first: bool = False) -> Training:
        """The training of a method; `first` is the distillation before autoguidance.

        Features are not distilled with autoguidance, whose target is not the original's output.
        """
        is_guided = method in (AUTOGUIDED, DISTILLED_AUTOGUIDED) and not first
        is_distilled = method in (NO_DATA, DISTILLED, DISTILLED_AUTOGUIDED)
        has_features = method in (DISTILLED, DISTILLED_AUTOGUIDED, WITH_DISTILLATION) and not is_guided
        changes = {
            "seed": seed,
            "max_train_steps": self.distillation_steps if first else self.training.max_train_steps,
            "snr_weighting": method != PLAIN_LOSS,
            "task_loss_weight": float(not is_distilled),
            "output_kd_weight": float(is_distilled or method == WITH_DISTILLATION),
            "feature_kd_weight": FEATURE_KD_WEIGHT * has_features,
            "autoguidance_scale": is_guided * (self.training.autoguidance_scale or AUTOGUIDANCE_SCALE),
            **(LORA_SETTINGS if method == LORA else {}),
        }
        return self.training.replace(**changes)

    def methods(self, cut: float) -> tuple[str, ...]:
        """What is measured of this model at a cut. SNR weighting changes epsilon-prediction only."""
        has_epsilon = schedulers(self.model.pipeline)[0].config.prediction_type == "epsilon"
        names = METHODS if cut == CUTS[0] else AT_EVERY_CUT
        return tuple(name for name in names if name != PLAIN_LOSS or has_epsilon)

    def finetuning(
        self, pipeline: DiffusionPipeline, training: Training, name: str, *, data: bool = True
    ) -> Finetuning:
        """The finetuning of a pruned pipeline; all share their examples."""
        run, shared = self.folder / "cells" / name, self.folder / "examples"
        run.mkdir(parents=True, exist_ok=True)
        shared.mkdir(exist_ok=True)
        if not (run / "examples").exists():
            (run / "examples").symlink_to(shared.resolve())
        probe = self.probe(training.seed).replace(samples=self.own_samples, steps=OWN_STEPS)
        rows = self.model.train if data else None
        return Finetuning(pipeline, self.model.pipeline, rows, probe=probe, training=training, run=run)

    def latency(self, pipeline: DiffusionPipeline, steps: int, seed: int) -> Percentiles:
        """The time to sample one sample's latents over the original's, in turn.

        On a processor it is the processor time of one thread, so that other work on the machine does not count.
        """
        probe = self.probe(seed)
        other = probe.replace(steps=steps)
        pairs = [(_timed(self.model.pipeline, probe), _timed(pipeline, other)) for _ in range(ROUNDS + 1)]
        return Percentiles.of([second / first for first, second in pairs[1:]])

    def costs(self, pipeline: DiffusionPipeline, steps: int, seed: int) -> dict[str, Any]:
        original, pruned = (find_denoiser(part) for part in (self.model.pipeline, pipeline))
        is_cpu = pipeline.device.type == "cpu"
        return {
            "latency_ratio": self.latency(pipeline, steps, seed).model_dump(),
            "latency_statistic": "of pairs in turn; processor time of one thread" if is_cpu else "of pairs",
            "parameters": count_parameters(pruned.module),
            "original_parameters": count_parameters(original.module),
            "macs": denoiser_macs(pruned),
            "original_macs": denoiser_macs(original),
        }

    def compute(self, method: str, macs_ratio: float) -> float:
        """Finetuning over the denoiser's training; a backward pass counts as two calls, each teacher's as one."""
        recipe = RECIPES[self.model.name]
        stages = {"denoiser": recipe.denoiser_training, "refinement": recipe.refinement_training}
        trained = sum(recipe.steps(name) * stage.train_batch_size for name, stage in stages.items() if stage)
        calls, trainings = 0.0, [self.training_of(method, 0)]
        if self.distillation_steps:
            trainings.append(self.training_of(method, 0, first=True))
        for training in trainings:
            weak_calls = macs_ratio * (training.autoguidance_scale > 0)
            calls += training.max_train_steps * (3 * macs_ratio + training.needs_teacher + weak_calls)
        return calls * self.training.train_batch_size / (3 * trained)


def recorded(training: Training) -> dict[str, Any]:
    """The settings of a training in a record; a cell names its seed, and older cells lack the newer ones."""
    unchanged = {name for name in NEWER if getattr(training, name) == Training.model_fields[name].default}
    settings: dict[str, Any] = training.model_dump(mode="json", exclude={"seed", *unchanged})
    return settings


def usual_training(model: str) -> Training:
    return Training(
        max_train_steps=TRAIN_STEPS[model],
        train_batch_size=BATCH_SIZES[model],
        learning_rate=LEARNING_RATES[model],
        **SETTINGS,
    )


def _timed(pipeline: DiffusionPipeline, probe: ldpruner.Probe) -> float:
    if pipeline.device.type != "cpu":
        return elapsed_ms(lambda: sample_latents(pipeline, probe, [0]), pipeline.device)
    started = time.process_time()
    sample_latents(pipeline, probe, [0])
    return time.process_time() - started
