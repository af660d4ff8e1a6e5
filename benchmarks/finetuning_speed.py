"""What finetuning takes beside a bare loop of the same forward and backward passes, timed in turn.

    python -m benchmarks.finetuning_speed [--models satellite] [--rounds 24] [--steps 4]

The bare loop calls teacher and student on noisy latents that lie ready, takes the same losses, goes backwards and lets
torch's fused AdamW step. What finetuning adds is drawing examples and noise, clipping, the moving average, and
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

import ldpruner
from benchmarks.models import MODELS
from benchmarks.records import cell
from ldpruner.finetuning import Finetuning, Training
from ldpruner.finetuning.conditioning import predicted
from ldpruner.finetuning.losses import feature_loss, features_of, stages
from ldpruner.finetuning.objectives import random_levels
from ldpruner.profiling.benchmark import Percentiles
from ldpruner.selection.plan import Plan

BATCHES = (16, 32)
UNDER_WAY = 1000  # steps: at the start the average follows faster
MANY = 10**6  # so that neither a checkpoint nor a look at the held-out loss falls into a round


def main() -> None:
    """Measures what is missing."""
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
        found = cell("finetuning_speed", settings, measure)
        ratio = found["result"]["steps_per_second_ratio"]
        shown = f"{ratio['median']:.3f} of the bare loop ({ratio['p10']:.3f} to {ratio['p90']:.3f})"
        print(f"{name}, batch {batch}: {shown}")  # noqa: T201


def _measured(name: str, rounds: int, steps: int, batch: int) -> dict[str, Any]:
    teacher = ldpruner.load(f"zoo:{name}")
    training = Training(
        max_train_steps=MANY,
        train_batch_size=batch,
        task_loss_weight=1.0,
        validation_steps=MANY,
        checkpointing_steps=MANY,
    )
    probe = ldpruner.Probe(samples=64, steps=4)
    work = Finetuning(ldpruner.prune(teacher, Plan(removed=())), teacher, probe=probe, training=training)
    bare = Finetuning(ldpruner.prune(teacher, Plan(removed=())), teacher, probe=probe, training=training)
    work.state.step, work.state.validation_losses = UNDER_WAY, {0: math.inf}
    loops = iter(work), _bare(bare)
    pairs = [[_time(loop, steps) for loop in loops] for _ in range(rounds + 1)]
    ratios = [other / ours for ours, other in pairs[1:]]
    return {
        "steps_per_second_ratio": Percentiles.of(ratios).model_dump(),
        "seconds_per_step": Percentiles.of([ours / steps for ours, _ in pairs[1:]]).model_dump(),
    }


def _bare(work: Finetuning) -> Iterator[None]:
    """The same passes, and nothing else."""
    distillation, training, module = work.distillation, work.training, work.state.module
    optimizer = torch.optim.AdamW(module.parameters(), training.learning_rate, fused=True)
    indices = torch.arange(training.train_batch_size)
    latents, given = distillation.examples.batch(indices, torch.zeros_like(indices))
    levels = random_levels(training.train_batch_size, torch.Generator())
    noisy, target, times = distillation.objective.noised(latents, torch.randn_like(latents), levels)
    call = distillation.conditions.arguments(noisy, times, given)
    names = stages(distillation.teacher, module)
    mse = torch.nn.functional.mse_loss
    with features_of(distillation.teacher, names) as taught, features_of(module, names) as learnt:
        while True:
            with torch.no_grad():
                shown = predicted(distillation.teacher(**call), noisy)
            found = predicted(module(**call), noisy)
            loss = (training.task_loss_weight or 0.0) * mse(found, target) + training.output_kd_weight * mse(
                found, shown
            )
            loss = loss + training.feature_kd_weight * feature_loss(
                taught, learnt, normalised=training.normalize_features
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield


def _time(loop: Iterator[Any], steps: int) -> float:
    """Processor time of one thread: with nothing else on the machine it is the time that passes."""
    started = time.process_time()
    for _ in range(steps):
        next(loop)
    return time.process_time() - started


if __name__ == "__main__":
    main()
