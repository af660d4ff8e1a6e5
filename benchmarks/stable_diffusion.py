"""ld-pruner at the size of Stable Diffusion v1.4: its cost, and whether its predictions hold on an accelerator.

    python -m benchmarks.stable_diffusion [--device cuda] [--cells latency scoring ...] [--results FOLDER]
    python -m benchmarks.stable_diffusion --device cpu --small --results FOLDER

The networks have random weights. Time and memory do not depend on weights. Scores mean nothing, so plans only show how
well latency is predicted. On CUDA everything is in half precision. `--small` stands in for the model where there is no
accelerator: it has as many operators, all of them narrow.
"""

import argparse
import copy
import functools
import itertools
import logging
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.functional import mse_loss

import ldpruner
from benchmarks.criteria import CRITERIA, Case
from benchmarks.full_size import FullSizeModel, open_full_size
from benchmarks.records import RESULTS, cell
from benchmarks.waits import counted_waits
from ldpruner.errors import LdPrunerError
from ldpruner.finetuning import Training
from ldpruner.finetuning.conditioning import predicted
from ldpruner.finetuning.distillation import Distillation
from ldpruner.finetuning.losses import feature_loss, features_of, stages
from ldpruner.finetuning.objectives import random_levels
from ldpruner.finetuning.trainer import Finetuning
from ldpruner.operators.discovery import Operator, denoiser_macs
from ldpruner.operators.patching import modified
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pipelines.running import networks, run_pipeline
from ldpruner.pipelines.sampling import sample_latents
from ldpruner.profiling.benchmark import Percentiles, compare
from ldpruner.profiling.costs import elapsed_ms, peak_memory
from ldpruner.scoring.results import Scores
from ldpruner.scoring.runner import ScoringRun
from ldpruner.scoring.worker import Task, Worker
from ldpruner.selection.plan import Plan

Precision: TypeAlias = Literal["fp16", "bf16"]

METHODS = ("BK-SDM", "ld-pruner")
BUDGETS = (0.65, 0.5)
LARGE = ("stage", "resnet", "transformer", "attention", "feed_forward")
PATIENCE = 60.0  # seconds that compiling may take, to be done once more
MANY = 10**6  # so that no checkpoint and no validation falls into a round
STEPS = 3  # in a round
PRECISIONS: Mapping[str, Sequence[Precision]] = {"cuda": ("fp16", "bf16"), "cpu": ("bf16",)}
AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}

logger = logging.getLogger(__name__)


def main() -> None:
    """Measures what is missing; a cell that fails does not stop the others."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    cells = {one.__name__.removeprefix("_"): one for one in (_latency, _scoring, _pruned, _finetuning, _compile)}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--cells", nargs="+", choices=cells, default=tuple(cells))
    parser.add_argument("--small", action="store_true", help="a narrow model and few samples")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.small and options.results == RESULTS:
        parser.error("--small needs --results: the stand-in must not be among the committed results")
    model = open_full_size(torch.device(options.device), small=options.small)
    extent = {"device": options.device, "small": options.small, **asdict(model.extent)}
    failed = []
    for name in options.cells:
        try:
            measure = functools.partial(cells[name], model)
            cell("stable_diffusion", {"cell": name, **extent}, measure, options.results)
        except Exception:  # logged with its traceback
            logger.exception("%s failed", name)
            failed.append(name)
    sys.exit(f"failed: {', '.join(failed)}" if failed else None)


def _latency(model: FullSizeModel) -> dict[str, Any]:
    """A guided denoiser call, and sampling latents."""
    pipeline, denoiser, extent = model.pipeline, model.denoiser, model.extent
    sample = functools.partial(sample_latents, pipeline, model.probe(extent.steps), [0])
    return {
        "dtype": str(pipeline.dtype),
        "parameters": count_parameters(denoiser.module),
        "macs": denoiser_macs(denoiser),
        "call_ms": Percentiles.of(model.milliseconds(denoiser, 3 * extent.rounds)).model_dump(),
        "sampling_ms": Percentiles.of(model.milliseconds(sample, extent.rounds)).model_dump(),
        "call_peak_bytes": peak_memory(pipeline, denoiser),
        "sampling_peak_bytes": peak_memory(pipeline, sample),
    }


def _scoring(model: FullSizeModel) -> dict[str, Any]:
    """Scoring over the same calls of the pipeline and of its denoiser alone; where it waits for the device."""
    places = np.linspace(0, len(model.operators) - 1, model.extent.modifications).astype(int)
    chosen = [model.operators[place] for place in places]
    operators = [operator.replace(candidates=operator.candidates[:1]) for operator in chosen]
    _in_turn(model, operators[:1])  # does not count
    rounds = [_in_turn(model, operators) for _ in range(model.extent.pairs)]
    return {
        "samplings": 1 + len(operators),
        "ms": rounds,
        "ratio": Percentiles.of([times["scoring"] / times["denoiser"] for times in rounds]).model_dump(),
        "ratio_to_pipeline": Percentiles.of([times["scoring"] / times["pipeline"] for times in rounds]).model_dump(),
        "waits": _waits(model, operators[0]),
    }


def _in_turn(model: FullSizeModel, operators: Sequence[Operator]) -> dict[str, float]:
    """Milliseconds of scoring without its profile, of the pipeline, and of the denoiser calls alone."""
    pipeline, probe, denoiser = model.pipeline, model.probe(model.extent.scored_steps), model.denoiser
    with tempfile.TemporaryDirectory() as run, ScoringRun(pipeline, operators, probe, run=run) as scoring:
        scored = elapsed_ms(lambda: list(scoring), model.device)
        calls = scoring.store.denoiser_calls() // (1 + len(operators))

    def timed(sample: Callable[[], Any]) -> float:
        return elapsed_ms(lambda: _modified_one_by_one(denoiser.module, operators, sample), model.device)

    alone = timed(lambda: run_pipeline(pipeline, probe.arguments(pipeline, [0])))
    return {"scoring": scored, "pipeline": alone, "denoiser": timed(lambda: [denoiser() for _ in range(calls)])}


def _modified_one_by_one(network: nn.Module, operators: Sequence[Operator], sample: Callable[[], Any]) -> None:
    for removals in [[], *([one.candidates[0].removal] for one in operators)]:
        with modified(network, removals):
            sample()


def _waits(model: FullSizeModel, operator: Operator) -> dict[str, Any]:
    """How often sampling for a score waits for the device, in each step and besides, by the place in the code."""
    few, many = (_waits_of(model, operator, steps) for steps in (4, 12))
    in_steps = {place: (count - few[place]) / 8 for place, count in many.items() if count > few[place]}
    return {
        "each_step": sum(in_steps.values()),
        "besides": sum(few.values()) - 4 * sum(in_steps.values()),
        "each_step_by_place": in_steps,
        "of_four_steps_by_place": dict(few),
    }


def _waits_of(model: FullSizeModel, operator: Operator, steps: int) -> Counter[str]:
    task = Task(model.denoiser.component, model.probe(steps), operator.candidates[0].removal, (0,), 1)
    with counted_waits(model.device) as found:
        Worker(model.pipeline)(task)
    return found


def _pruned(model: FullSizeModel) -> dict[str, Any]:
    """The predicted and the measured latency of plans."""
    started = time.perf_counter()
    scores = _scores(model)
    seconds = time.perf_counter() - started
    cases = {"BK-SDM": Case(model.pipeline, model.profile), "ld-pruner": Case(model.pipeline, scores)}
    plans = [
        {
            "method": method,
            "budget": budget,
            **_or_failure(functools.partial(_kept, model, cases[method], method, budget)),
        }
        for method, budget in itertools.product(METHODS, BUDGETS)
    ]
    return {"scored": len(scores.scores), "scoring_seconds": seconds, "plans": plans}


def _scores(model: FullSizeModel) -> Scores:
    """Scores of all operators, or only large ones if time is short, with the savings of the profile."""
    probe, pipeline, profile = model.probe(2), model.pipeline, model.profile
    each = min(model.milliseconds(lambda: sample_latents(pipeline, probe, [0]), 2)) / 1000
    is_short = each * len(profile.scores) <= model.extent.seconds
    operators = [operator for operator in model.operators if is_short or operator.module_type in LARGE]
    scores = ldpruner.score_operators(pipeline, operators, probe, budgets=None)
    savings = {score.candidate: score.savings for score in profile.scores}
    saving = tuple(score.replace(savings=savings[score.candidate]) for score in scores.scores)
    return scores.replace(scores=saving, costs=profile.costs)


def _or_failure(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The measurement, or why it failed."""
    try:
        return measure()
    except (LdPrunerError, RuntimeError, ValueError) as error:
        logger.warning("%s", error)
        return {"failure": str(error)}


def _kept(model: FullSizeModel, case: Case, method: str, budget: float) -> dict[str, Any]:
    """How much of the original a plan keeps, as predicted and as measured."""
    plan = CRITERIA[method](case)(1 - budget)
    pair = {"original": model.pipeline, "pruned": ldpruner.prune(model.pipeline, plan)}
    comparison = compare(pair, model.probe(model.extent.planned_steps), rounds=model.extent.rounds)
    before, after = comparison.pipelines
    assert plan.predicted is not None
    assert comparison.latency_ratio is not None
    return {
        "removed": len(plan.removed),
        "predicted_latency": plan.predicted.latency,
        "latency": comparison.latency_ratio.model_dump(),
        "predicted_memory": plan.predicted.memory,
        "peak_memory": after.peak_memory_bytes / before.peak_memory_bytes,
        "parameters": after.parameters / before.parameters,
        "macs": after.macs / before.macs,
        "measured": [cost.model_dump() for cost in comparison.pipelines],
    }


def _finetuning(model: FullSizeModel) -> dict[str, Any]:
    """Finetuning of a network pruned by BK-SDM's rule over a bare loop of the same passes, in each precision."""
    plan = CRITERIA["BK-SDM"](Case(model.pipeline, model.profile))(1 - BUDGETS[0])
    train = functools.partial(_trained, model, plan)
    return {precision: _or_failure(functools.partial(train, precision)) for precision in PRECISIONS[model.device.type]}


def _trained(model: FullSizeModel, plan: Plan, precision: Precision) -> dict[str, Any]:
    training = Training(
        max_train_steps=MANY,
        train_batch_size=4,
        task_loss_weight=1.0,
        mixed_precision=precision,
        validation_steps=MANY,
        checkpointing_steps=MANY,
    ).resolved(data=True, steps=4)
    pruned = ldpruner.prune(model.pipeline, plan)
    bare = copy.deepcopy(networks(pruned)[model.denoiser.component])
    probe = model.probe(4).replace(samples=8)
    work = Finetuning(pruned, model.pipeline, probe=probe, training=training)
    work.state.validation_losses = {0: math.inf}
    loops = iter(work), _bare(work.distillation, bare, training, model.device)
    advances = [lambda loop=loop: list(itertools.islice(loop, STEPS)) for loop in loops]
    rounds = [[elapsed_ms(one, model.device) / STEPS for one in advances] for _ in range(1 + 2 * model.extent.pairs)]
    return {
        "steps_per_second": Percentiles.of([1000 / ours for ours, _ in rounds[1:]]).model_dump(),
        "ratio": Percentiles.of([other / ours for ours, other in rounds[1:]]).model_dump(),
        "ms_per_step": rounds,
    }


def _bare(distillation: Distillation, module: nn.Module, training: Training, device: torch.device) -> Iterator[None]:
    """The same forward and backward passes on prepared latents, and torch's optimizer."""
    optimizer = torch.optim.AdamW(module.float().requires_grad_(True).parameters(), training.learning_rate, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=training.mixed_precision == "fp16")
    indices, names = torch.arange(training.train_batch_size), stages(distillation.teacher, module)
    latents, given = distillation.examples.batch(indices, torch.zeros_like(indices))
    levels = random_levels(training.train_batch_size, torch.Generator())
    noisy, target, times = distillation.add_noise(latents, torch.randn_like(latents), levels)
    noisy, target = noisy.to(device), target.to(device)
    call = distillation.call_signature.arguments(noisy, times, given)
    with features_of(distillation.teacher, names) as taught, features_of(module, names) as learnt:
        while True:
            with torch.autocast(device.type, AUTOCAST[training.mixed_precision]):
                found = predicted(module(**call), noisy).float()
                shown = distillation.predict(distillation.teacher, noisy, times, given)
                loss = mse_loss(found, target) + training.output_kd_weight * mse_loss(found, shown)
                loss = loss + (training.feature_kd_weight or 0.0) * feature_loss(
                    taught, learnt, normalize=training.normalize_features
                )
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            yield


def _compile(model: FullSizeModel) -> dict[str, Any]:
    """The compiled denoiser over the eager one; and whether a modification makes torch compile again."""
    torch.compiler.config.force_disable_caches = True
    denoiser, backend = model.denoiser, model.extent.backend
    compiled = torch.compile(denoiser.module, backend=backend, dynamic=False)

    @torch.no_grad()
    def call() -> None:
        compiled(*denoiser.arguments, **denoiser.options)

    first = _seconds_and_graphs(call, model.device)
    pairs = [[elapsed_ms(one, model.device) for one in (denoiser, call)] for _ in range(1 + 3 * model.extent.rounds)]
    found = {
        "seconds_to_compile": first[0],
        "graphs": first[1],
        "eager_ms": Percentiles.of([eager for eager, _ in pairs[1:]]).model_dump(),
        "ratio": Percentiles.of([ours / eager for eager, ours in pairs[1:]]).model_dump(),
    }
    if first[0] > PATIENCE:
        return found
    removal = model.operators[len(model.operators) // 2].candidates[0].removal
    with modified(denoiser.module, [removal]):
        again = _seconds_and_graphs(call, model.device)
    return {**found, "modified": removal.operator, "seconds_when_modified": again[0], "graphs_when_modified": again[1]}


def _seconds_and_graphs(call: Callable[[], None], device: torch.device) -> tuple[float, int]:
    """The seconds of a call, and the graphs compiled for it."""
    before = counters["stats"]["unique_graphs"]
    seconds = elapsed_ms(call, device) / 1000
    return seconds, counters["stats"]["unique_graphs"] - before


if __name__ == "__main__":
    main()
