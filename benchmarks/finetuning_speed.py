"""Speed of finetuning relative to a bare loop of the same forward and backward passes, timed in turn.

    python -m benchmarks.finetuning_speed [--models satellite] [--rounds 24] [--steps 4]

The bare loop calls teacher and student on noisy latents that are made in advance, computes the same losses, and takes
a step of torch's fused AdamW. Finetuning adds random examples and noise, gradient clipping, the moving average, and
Accelerate.
"""

import argparse
import functools
import itertools
import logging
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import mse_loss

import ldpruner
from benchmarks.models import MODELS
from benchmarks.records import cell
from ldpruner.finetuning import Training
from ldpruner.finetuning.conditioning import predicted
from ldpruner.finetuning.distillation import Distillation
from ldpruner.finetuning.losses import feature_loss, features_of, stages
from ldpruner.finetuning.objectives import random_levels
from ldpruner.finetuning.trainer import Finetuning
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.profiling.benchmark import Percentiles
from ldpruner.selection.plan import Plan

BATCHES = (16, 32)
NEVER = 10**6  # steps: no checkpoint and no validation falls into a round


def main() -> None:
    """Runs the cells that have no result yet."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=("satellite", "emoji"))
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--steps", type=int, default=4, help="in each round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, batch in itertools.product(options.models, BATCHES):
        settings = {"model": name, "train_batch_size": batch, "rounds": options.rounds, "steps": options.steps}
        measure = functools.partial(_measured, name, options.rounds, options.steps, batch)
        ratio = cell("finetuning_speed", settings, measure)["result"]["steps_per_second_ratio"]
        speed = f"{ratio['median']:.3f} of the bare loop ({ratio['p10']:.3f} to {ratio['p90']:.3f})"
        print(f"{name}, batch {batch}: {speed}")  # noqa: T201


def _measured(name: str, rounds: int, steps: int, batch: int) -> dict[str, Any]:
    teacher = ldpruner.load(f"zoo:{name}")
    training = Training(
        max_train_steps=NEVER,
        train_batch_size=batch,
        task_loss_weight=1.0,
        validation_steps=NEVER,
        checkpointing_steps=NEVER,
    ).resolved(data=True, steps=4)
    probe = ldpruner.Probe(samples=64, steps=4)
    finetuning = Finetuning(ldpruner.prune(teacher, Plan(removed=())), teacher, probe=probe, training=training)
    finetuning.state.validation_losses = {0: math.inf}
    student = find_denoiser(ldpruner.prune(teacher, Plan(removed=()))).module
    loops = iter(finetuning), _bare(finetuning.distillation, student, training)
    pairs = [[_time(loop, steps) for loop in loops] for _ in range(rounds + 1)]
    return {
        "steps_per_second_ratio": Percentiles.of([bare / ours for ours, bare in pairs[1:]]).model_dump(),
        "seconds_per_step": Percentiles.of([ours / steps for ours, _ in pairs[1:]]).model_dump(),
    }


def _bare(distillation: Distillation, student: torch.nn.Module, training: Training) -> Iterator[None]:
    """The same passes, and nothing else."""
    optimizer = torch.optim.AdamW(student.requires_grad_(True).parameters(), training.learning_rate, fused=True)
    indices = torch.arange(training.train_batch_size)
    latents, conditions = distillation.examples.batch(indices, torch.zeros_like(indices))
    levels = random_levels(training.train_batch_size, torch.Generator())
    noisy, target, times = distillation.add_noise(latents, torch.randn_like(latents), levels)
    call = distillation.call_signature.arguments(noisy, times, conditions)
    names = stages(distillation.teacher, student)
    with features_of(distillation.teacher, names) as teacher_features, features_of(student, names) as student_features:
        while True:
            with torch.no_grad():
                teacher_output = predicted(distillation.teacher(**call), noisy)
            output = predicted(student(**call), noisy)
            loss = (training.task_loss_weight or 0.0) * mse_loss(output, target)
            loss = loss + training.output_kd_weight * mse_loss(output, teacher_output)
            loss = loss + (training.feature_kd_weight or 0.0) * feature_loss(
                teacher_features, student_features, normalize=training.normalize_features
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield


def _time(loop: Iterator[Any], steps: int) -> float:
    """Processor time of one thread, which on an idle machine is the wall time."""
    started = time.process_time()
    for _ in range(steps):
        next(loop)
    return time.process_time() - started


if __name__ == "__main__":
    main()
