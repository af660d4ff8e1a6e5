"""ld-pruner against its baselines: the quality that is left at the same measured latency.

    python -m benchmarks.baselines --data FOLDER [--models emoji] [--cuts 0.5] [--seeds 0 1] [--methods ld-pruner]
    python -m benchmarks.baselines --data FOLDER --long

FOLDER holds the data of each model as `FOLDER/NAME/train.zip` and `test.zip`, see the model cards. Every method prunes
until the same share of the latency is gone, as measured. Then it is finetuned with the same settings, seed and data.
`--long` finetunes with at most a tenth of the training's compute.
"""

import argparse
import dataclasses
import functools
import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from torch import nn

from benchmarks.channels import Examples, channel_pruned, denoising_gradients, to_latency
from benchmarks.comparison import (
    AUTOGUIDED,
    CHANNELS,
    CUTS,
    DISTILLED,
    DISTILLED_AUTOGUIDED,
    FEWER_STEPS,
    METHODS,
    NO_DATA,
    ORIGINAL,
    OURS,
    PICTURES,
    REINITIALISED,
    SAME_PLAN,
    STEPS,
    Bench,
    recorded,
    usual_training,
)
from benchmarks.criteria import CRITERIA, Case, Planner
from benchmarks.feature_network import autoencoder_bound, measured_quality
from benchmarks.models import EARLIER, MODELS, open_model
from benchmarks.records import Record, cell
from ldpruner.alternatives import steps_within
from ldpruner.errors import BudgetError, FinetuningError
from ldpruner.finetuning import Training
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pruning.fit import fit
from ldpruner.pruning.surgery import prune
from ldpruner.selection.plan import Plan

LONG_PICTURES = 1024
# small batches make more steps of the same compute
SMALL_BATCH: Mapping[str, Any] = {"train_batch_size": 8, "ema_decay": 0.997, "validation_steps": 400}
EXAMPLES = 64  # from which channels' gradients are taken


class LongRun(NamedTuple):
    """A longer finetuning.

    Attributes:
        method: the variant of ld-pruner.
        cut: of the latency.
        steps: of training.
        distillation_steps: before autoguidance.
        changes: of the usual settings.
    """

    method: str
    cut: float
    steps: int
    distillation_steps: int = 0
    changes: Mapping[str, Any] = MappingProxyType({})


# scales and noise levels were chosen on training images
INTERVAL: Mapping[str, Any] = {"learning_rate": 3e-4, "autoguidance_scale": 3.0, "guidance_interval": (0.2, 0.7)}
FAST: Mapping[str, Any] = {"learning_rate": 1e-3}
LONG_RUNS: Mapping[str, LongRun] = {
    "satellite": LongRun(DISTILLED_AUTOGUIDED, 0.5, 3500, 500, INTERVAL),
    "emoji": LongRun(AUTOGUIDED, 0.5, 900),
    EARLIER: LongRun(AUTOGUIDED, 0.5, 900),
    "digits": LongRun(DISTILLED_AUTOGUIDED, 0.5, 12500, 500, {**FAST, "autoguidance_scale": 1.5}),
}
TRIALS: Mapping[str, tuple[LongRun, ...]] = {
    "satellite": (
        LongRun(DISTILLED_AUTOGUIDED, 0.5, 3000, 1000, INTERVAL),
        LongRun(DISTILLED_AUTOGUIDED, 0.5, 8000, 1000, INTERVAL),
        LongRun(NO_DATA, 0.5, 2000),
    ),
    "emoji": (LongRun(OURS, 0.5, 1760),),
    EARLIER: (LongRun(OURS, 0.5, 1760),),
    "digits": (
        LongRun(DISTILLED_AUTOGUIDED, 0.5, 20000, 500, {**FAST, "autoguidance_scale": 2.0}),
        LongRun(DISTILLED_AUTOGUIDED, 0.5, 11000, 2000, FAST),
        LongRun(DISTILLED_AUTOGUIDED, 0.5, 17000, 3000, FAST),
        LongRun(DISTILLED, 0.5, 20000, 0, FAST),
        LongRun(AUTOGUIDED, 0.5, 11000, 2000),
    ),
}


def main() -> None:
    """Measures every cell that is missing."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--cuts", nargs="+", type=float, default=CUTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0,))
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default: all at 50 %%, some at other cuts")
    parser.add_argument("--long", action="store_true", help="only half of the latency, finetuned longer")
    parser.add_argument("--trials", action="store_true", help="only the settings that --long does not use")
    parser.add_argument("--train-steps", type=int, help="of finetuning; default: the usual ones of the model")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="that measure a method")
    parser.add_argument("--device", default="cpu", help="for finetuning and sampling; latency is a processor's")
    parser.add_argument("--runs", type=Path, default=Path("runs/baselines"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.models:
        model = open_model(name, options.data / name)
        training = usual_training(name)
        training = training.replace(max_train_steps=options.train_steps or training.max_train_steps)
        bench = Bench(model, options.runs / name, training, options.pictures, options.device)
        for seed in options.seeds:
            if options.long:
                _long(bench, seed)
            if options.trials:
                _longer(bench, TRIALS[name], seed)
            if options.long or options.trials:
                continue
            for cut in options.cuts:
                for method in options.methods or bench.methods(cut):
                    measure_cell(bench, method, cut, seed)


def _long(bench: Bench, seed: int) -> None:
    model = bench.model.name
    run = LONG_RUNS[model]
    original = LongRun(ORIGINAL, run.cut, run.distillation_steps + run.steps)
    _longer(bench, (run, LongRun(FEWER_STEPS, run.cut, run.steps), original), seed)
    settings = {"model": model, "weights": bench.model.weights, "pictures": LONG_PICTURES, "seed": seed}
    cell("autoencoder_bound", settings, functools.partial(autoencoder_bound, bench.model, LONG_PICTURES, seed))


def _longer(bench: Bench, runs: Iterable[LongRun], seed: int) -> None:
    for run in runs:
        training = bench.training.replace(max_train_steps=run.steps, **SMALL_BATCH, **run.changes)
        longer = dataclasses.replace(
            bench,
            training=training,
            distillation_steps=run.distillation_steps,
            pictures=LONG_PICTURES,
            replan=True,
        )
        measure_cell(longer, run.method, run.cut, seed)


def measure_cell(bench: Bench, method: str, cut: float, seed: int) -> Record:
    """The record of a method, measured if it is missing."""
    cut = 0.0 if method == ORIGINAL else cut
    training = bench.training_of(method, seed)
    finetuning = {
        "training": recorded(training),
        "distillation_steps": bench.distillation_steps,
    }
    settings = {
        "model": bench.model.name,
        "weights": bench.model.weights,
        "method": method,
        "cut": cut,
        "seed": seed,
        "pictures": bench.pictures,
        "steps": STEPS,
        **(finetuning if method != FEWER_STEPS else {"training": None}),
    }
    name = f"{method.replace(' ', '-')}-{cut:g}-{seed}-{training.max_train_steps}"
    return cell("baselines", settings, lambda: _measured(bench, method, cut, seed, name))


def _measured(bench: Bench, method: str, cut: float, seed: int, name: str) -> dict[str, Any]:
    try:
        pipeline, plan = _pruned(bench, method, cut, seed)
    except BudgetError as error:
        return {"failure": str(error)}
    steps = steps_within(STEPS, 1 - cut) if method == FEWER_STEPS else STEPS
    result = bench.costs(pipeline, steps, seed)
    result["removed"] = [planned.removal.model_dump(mode="json") for planned in plan.removed] if plan else None
    with bench.on_device(pipeline):
        strip = bench.folder / "strips" / f"{name}-before.png"
        result["before"] = measured_quality(bench.model, pipeline, bench.pictures, steps, seed, strip)
        if method != FEWER_STEPS:
            result |= _recovered(bench, method, pipeline, seed, name)
            result["compute"] = bench.compute(method, result["macs"] / result["original_macs"])
    return result


def _recovered(bench: Bench, method: str, pipeline: DiffusionPipeline, seed: int, name: str) -> dict[str, Any]:
    """The quality after finetuning; some plans leave a network that cannot be trained."""
    training, data = bench.training_of(method, seed), method != NO_DATA
    try:
        if bench.distillation_steps:
            first = bench.training_of(method, seed, first=True)
            finetune_(bench, pipeline, first, f"{name}-first", data=data)
        losses = finetune_(bench, pipeline, training, name, data=data)
    except FinetuningError as error:
        return {"diverged": str(error)}
    strip = bench.folder / "strips" / f"{name}-after.png"
    quality = measured_quality(bench.model, pipeline, bench.pictures, STEPS, seed, strip)
    return {"after": quality, "validation_losses": losses}


def finetune_(
    bench: Bench, pipeline: DiffusionPipeline, training: Training, name: str, *, data: bool
) -> dict[int, float]:
    """Finetunes a pipeline in place; returns its validation losses."""
    # a checkpoint of an earlier try may belong to another plan
    shutil.rmtree(bench.folder / "cells" / name, ignore_errors=True)
    work = bench.finetuning(pipeline, training, name, data=data)
    for _ in work:
        pass
    history = work.finish()
    # the last weights for every method: the best validation loss of some is that before finetuning
    work.state.ema.copy_to(work.state.weights)
    work.write_adapter(bench.folder / "cells" / name)
    shutil.rmtree(bench.folder / "cells" / name, ignore_errors=True)
    return history.validation_losses


def _pruned(bench: Bench, method: str, cut: float, seed: int) -> tuple[DiffusionPipeline, Plan | None]:
    """The pipeline that a method leaves when a share of the latency is gone, as measured."""
    original = bench.model.pipeline
    if method in (ORIGINAL, FEWER_STEPS):
        return prune(original, Plan(removed=())), None
    has_plan = method in SAME_PLAN or (method == OURS and bench.training != usual_training(bench.model.name))
    if has_plan and not bench.replan:
        plan = plan_of_ours(bench, cut, seed)
        pruned = prune(original, plan)
        if method == REINITIALISED:
            _reinitialise_(find_denoiser(pruned).module, seed)
        return pruned, plan
    if method in CHANNELS:
        return _channel_pruned(bench, method, cut, seed), None
    planner = _planner(bench, method, seed)

    def make(latency: float) -> tuple[DiffusionPipeline, Plan]:
        plan = planner(1 - latency)
        return prune(original, plan), plan

    return fit(make, lambda made: bench.latency(made[0], STEPS, seed).median, 1 - cut)


def _planner(bench: Bench, method: str, seed: int) -> Planner:
    """The planner of a method, made once for all cuts."""
    if (method, seed) not in bench.planners:
        case = Case(bench.model.pipeline, bench.scores(seed), seed)
        bench.planners[method, seed] = CRITERIA.get(method, CRITERIA[OURS])(case)
    return bench.planners[method, seed]


def plan_of_ours(bench: Bench, cut: float, seed: int) -> Plan:
    training = usual_training(bench.model.name)
    usual = dataclasses.replace(bench, training=training, distillation_steps=0, pictures=PICTURES, replan=False)
    result = measure_cell(usual, OURS, cut, seed)["result"]
    if "failure" in result:
        raise BudgetError(result["failure"])
    return Plan.model_validate({"removed": [{"removal": removal} for removal in result["removed"]]})


def _channel_pruned(bench: Bench, method: str, cut: float, seed: int) -> DiffusionPipeline:
    gradients = _gradients(bench, seed) if method == CHANNELS[1] else None
    narrowed = functools.partial(channel_pruned, bench.model.pipeline, gradients=gradients)
    reached = to_latency(narrowed, lambda pipeline: bench.latency(pipeline, STEPS, seed).median, 1 - cut)
    if reached.latency > 1 - cut:
        raise BudgetError(f"the fastest cut of channels measured latency={reached.latency:.3f}")
    return reached.pipeline


def _reinitialise_(network: nn.Module, seed: int) -> None:
    """Initialises all weights anew, as torch's layers do when they are made."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in network.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()


def _gradients(bench: Bench, seed: int) -> dict[str, torch.Tensor]:
    copy = prune(bench.model.pipeline, Plan(removed=()))
    distillation = bench.finetuning(copy, bench.training_of(ORIGINAL, seed), "gradients").distillation
    chosen = torch.randperm(len(distillation.examples), generator=torch.Generator().manual_seed(seed))[:EXAMPLES]
    latents, tensors = distillation.examples.batch(chosen, torch.full_like(chosen, distillation.copies - 1))
    names = ("encoder_hidden_states",)[: len(tensors)]
    conditions = {name: tensor.flatten(0, 1) for name, tensor in zip(names, tensors, strict=True)}
    return denoising_gradients(bench.model.pipeline, Examples(latents, conditions), seed=seed)


if __name__ == "__main__":
    main()
