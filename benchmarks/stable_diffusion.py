"""ld-pruner at the size of Stable Diffusion v1.4: what it costs, and whether its predictions hold on an accelerator.

    python -m benchmarks.stable_diffusion [--device cuda] [--cells latency scoring ...] [--results FOLDER]
    python -m benchmarks.stable_diffusion --device cpu --small --results FOLDER

The networks have random weights. Time and memory do not depend on these; scores mean nothing, so plans show only how
well their latency is predicted. On CUDA all is in half precision, as it is usually run. `--small` stands in for the
model where there is no accelerator: as many operators, all of them narrow.
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
from benchmarks.criteria import RIVALS, Case
from benchmarks.full_size import Subject, open_subject
from benchmarks.records import RESULTS, cell
from benchmarks.waits import counted_waits
from ldpruner.errors import LdPrunerError
from ldpruner.finetuning import Finetuning, Training
from ldpruner.finetuning.conditioning import predicted
from ldpruner.finetuning.distillation import Distillation
from ldpruner.finetuning.losses import feature_loss, features_of, stages
from ldpruner.finetuning.objectives import random_levels
from ldpruner.operators.discovery import Operator, denoiser_macs
from ldpruner.operators.patching import modified
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pipelines.running import networks, run_pipeline
from ldpruner.pipelines.sampling import draw_latents
from ldpruner.profiling.benchmark import Percentiles, compare
from ldpruner.profiling.costs import peak_memory, timed_ms
from ldpruner.scoring.results import Scores
from ldpruner.scoring.runner import Scoring
from ldpruner.scoring.worker import Task, Worker
from ldpruner.selection.plan import Plan

Precision: TypeAlias = Literal["fp16", "bf16"]

RULES = ("hand rule", "knapsack")  # BK-SDM's, and ld-pruner's own
BUDGETS = (0.65, 0.5)
LARGE = ("stage", "resnet", "transformer", "attention", "feed_forward")
PATIENCE = 60.0  # seconds that compiling may take, to be done once more
MANY = 10**6  # so that neither a checkpoint nor a look at the held-out loss falls into a round
UNDER_WAY, STEPS = 1000, 3  # steps: at the start the average follows faster; in a round
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
        parser.error("--small needs --results: what stands in for the model is no result")
    subject = open_subject(torch.device(options.device), small=options.small)
    settings = {"device": options.device, "small": options.small, **asdict(subject.extent)}
    failed = []
    for name in options.cells:
        try:
            measure = functools.partial(cells[name], subject)
            cell(f"stable_diffusion/{name}", settings, measure, options.results)
        except Exception:  # logged with its traceback
            logger.exception("%s failed", name)
            failed.append(name)
    sys.exit(f"failed: {', '.join(failed)}" if failed else None)


def _latency(subject: Subject) -> dict[str, Any]:
    """A guided denoiser call, and a whole draw of latents."""
    pipeline, denoiser, extent = subject.pipeline, subject.denoiser, subject.extent
    draw = functools.partial(draw_latents, pipeline, subject.probe(extent.steps), [0])
    return {
        "dtype": str(pipeline.dtype),
        "parameters": count_parameters(denoiser.module),
        "macs": denoiser_macs(denoiser),
        "call_ms": Percentiles.of(subject.milliseconds(denoiser, 3 * extent.rounds)).model_dump(),
        "draw_ms": Percentiles.of(subject.milliseconds(draw, extent.rounds)).model_dump(),
        "call_peak_bytes": peak_memory(pipeline, denoiser),
        "draw_peak_bytes": peak_memory(pipeline, draw),
    }


def _scoring(subject: Subject) -> dict[str, Any]:
    """Scoring beside the same calls of the pipeline, and of its denoiser alone; and what its draws wait for."""
    found = subject.operators
    places = np.linspace(0, len(found) - 1, subject.extent.modifications).astype(int)
    operators = [found[place].model_copy(update={"candidates": found[place].candidates[:1]}) for place in places]
    _in_turn(subject, operators[:1])  # does not count
    rounds = [_in_turn(subject, operators) for _ in range(subject.extent.pairs)]
    return {
        "draws": 1 + len(operators),
        "ms": rounds,
        "ratio": Percentiles.of([one["scoring"] / one["denoiser"] for one in rounds]).model_dump(),
        "ratio_to_pipeline": Percentiles.of([one["scoring"] / one["pipeline"] for one in rounds]).model_dump(),
        "waits": _waits(subject, operators[0]),
    }


def _in_turn(subject: Subject, operators: Sequence[Operator]) -> dict[str, float]:
    """Milliseconds of scoring, without its profile; of the pipeline as it is, and of the denoiser's calls alone."""
    pipeline, probe, denoiser = subject.pipeline, subject.probe(subject.extent.scored_steps), subject.denoiser
    with tempfile.TemporaryDirectory() as run, Scoring(pipeline, operators, probe, run=run) as scoring:
        scored = timed_ms(lambda: list(scoring), subject.device)
        calls = scoring.store.denoiser_calls() // (1 + len(operators))

    def drawn(draw: Callable[[], Any]) -> float:
        return timed_ms(lambda: _modified_one_by_one(denoiser.module, operators, draw), subject.device)

    alone = drawn(lambda: run_pipeline(pipeline, probe.arguments(pipeline, [0])))
    return {"scoring": scored, "pipeline": alone, "denoiser": drawn(lambda: [denoiser() for _ in range(calls)])}


def _modified_one_by_one(network: nn.Module, operators: Sequence[Operator], draw: Callable[[], Any]) -> None:
    for removals in [[], *([one.candidates[0].removal] for one in operators)]:
        with modified(network, removals):
            draw()


def _waits(subject: Subject, operator: Operator) -> dict[str, Any]:
    """How often a draw for a score waits for the device: in each step and besides, by the place in the code."""
    few, many = (_waits_of(subject, operator, steps) for steps in (4, 12))
    in_steps = {place: (count - few[place]) / 8 for place, count in many.items() if count > few[place]}
    return {
        "each_step": sum(in_steps.values()),
        "besides": sum(few.values()) - 4 * sum(in_steps.values()),
        "each_step_by_place": in_steps,
        "of_four_steps_by_place": dict(few),
    }


def _waits_of(subject: Subject, operator: Operator, steps: int) -> Counter[str]:
    task = Task(subject.denoiser.component, subject.probe(steps), operator.candidates[0].removal, (0,), 1)
    with counted_waits(subject.device) as found:
        Worker(subject.pipeline)(task)
    return found


def _pruned(subject: Subject) -> dict[str, Any]:
    """Plans: how much of the latency is predicted to be left, and how much is."""
    started = time.perf_counter()
    scores = _scores(subject)
    seconds = time.perf_counter() - started
    case = {"hand rule": Case(subject.pipeline, subject.profile), "knapsack": Case(subject.pipeline, scores)}
    plans = [
        {"rule": rule, "budget": budget, **_or_failure(functools.partial(_kept, subject, case[rule], rule, budget))}
        for rule, budget in itertools.product(RULES, BUDGETS)
    ]
    return {"scored": len(scores.scores), "scoring_seconds": seconds, "plans": plans}


def _scores(subject: Subject) -> Scores:
    """Those of all operators, if there is time for it, with the savings of the profile."""
    probe, pipeline, profile = subject.probe(2), subject.pipeline, subject.profile
    each = min(subject.milliseconds(lambda: draw_latents(pipeline, probe, [0]), 2)) / 1000
    is_short = each * len(profile.scores) <= subject.extent.seconds
    operators = [one for one in subject.operators if is_short or one.kind in LARGE]
    scores = ldpruner.score_operators(pipeline, operators, probe, budgets=None)
    savings = {one.candidate: one.savings for one in profile.scores}
    saving = tuple(one.model_copy(update={"savings": savings[one.candidate]}) for one in scores.scores)
    return scores.model_copy(update={"scores": saving, "costs": profile.costs})


def _or_failure(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is measured, or why it cannot be."""
    try:
        return measure()
    except (LdPrunerError, RuntimeError, ValueError) as error:
        logger.warning("%s", error)
        return {"failure": str(error)}


def _kept(subject: Subject, case: Case, rule: str, budget: float) -> dict[str, Any]:
    """What a plan leaves of the original, as predicted and as measured."""
    plan = RIVALS[rule](case)(1 - budget)
    pair = {"original": subject.pipeline, "pruned": ldpruner.prune(subject.pipeline, plan)}
    found = compare(pair, subject.probe(subject.extent.planned_steps), rounds=subject.extent.rounds)
    before, after = found.pipelines
    assert plan.predicted is not None
    assert found.latency_ratio is not None
    return {
        "removed": len(plan.removed),
        "predicted_latency": plan.predicted.latency,
        "latency": found.latency_ratio.model_dump(),
        "predicted_memory": plan.predicted.memory,
        "peak_memory": after.peak_memory_bytes / before.peak_memory_bytes,
        "parameters": after.parameters / before.parameters,
        "macs": after.macs / before.macs,
        "measured": [one.model_dump() for one in found.pipelines],
    }


def _finetuning(subject: Subject) -> dict[str, Any]:
    """Training what the hand rule leaves, beside a bare loop of the same passes, in each precision."""
    plan = RIVALS["hand rule"](Case(subject.pipeline, subject.profile))(1 - BUDGETS[0])
    train = functools.partial(_trained, subject, plan)
    return {one: _or_failure(functools.partial(train, one)) for one in PRECISIONS[subject.device.type]}


def _trained(subject: Subject, plan: Plan, precision: Precision) -> dict[str, Any]:
    training = Training(
        max_train_steps=MANY,
        train_batch_size=4,
        task_loss_weight=1.0,
        mixed_precision=precision,
        validation_steps=MANY,
        checkpointing_steps=MANY,
    )
    pruned = ldpruner.prune(subject.pipeline, plan)
    bare = copy.deepcopy(networks(pruned)[subject.denoiser.component])
    probe = subject.probe(4).model_copy(update={"samples": 8})
    work = Finetuning(pruned, subject.pipeline, probe=probe, training=training)
    work.state.step, work.state.validation_losses = UNDER_WAY, {0: math.inf}
    loops = iter(work), _bare(work.distillation, bare, training, subject.device)
    advances = [lambda loop=loop: list(itertools.islice(loop, STEPS)) for loop in loops]
    rounds = [[timed_ms(one, subject.device) / STEPS for one in advances] for _ in range(1 + 2 * subject.extent.pairs)]
    return {
        "steps_per_second": Percentiles.of([1000 / ours for ours, _ in rounds[1:]]).model_dump(),
        "ratio": Percentiles.of([other / ours for ours, other in rounds[1:]]).model_dump(),
        "ms_per_step": rounds,
    }


def _bare(distillation: Distillation, module: nn.Module, training: Training, device: torch.device) -> Iterator[None]:
    """The same forward and backward passes on latents that lie ready, and torch's optimizer."""
    optimizer = torch.optim.AdamW(module.float().requires_grad_(True).parameters(), training.learning_rate, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=training.mixed_precision == "fp16")
    indices, names = torch.arange(training.train_batch_size), stages(distillation.teacher, module)
    latents, given = distillation.examples.batch(indices, torch.zeros_like(indices))
    levels = random_levels(training.train_batch_size, torch.Generator())
    noisy, target, times = distillation.noised(latents, torch.randn_like(latents), levels)
    noisy, target = noisy.to(device), target.to(device)
    call = distillation.conditions.arguments(noisy, times, given)
    with features_of(distillation.teacher, names) as taught, features_of(module, names) as learnt:
        while True:
            with torch.autocast(device.type, AUTOCAST[training.mixed_precision]):
                found = predicted(module(**call), noisy).float()
                shown = distillation.shown(distillation.teacher, noisy, times, given)
                loss = mse_loss(found, target) + training.output_kd_weight * mse_loss(found, shown)
                loss = loss + training.feature_kd_weight * feature_loss(
                    taught, learnt, normalised=training.normalize_features
                )
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            yield


def _compile(subject: Subject) -> dict[str, Any]:
    """The denoiser compiled beside itself as it is written; and whether a modification has it compiled anew."""
    torch.compiler.config.force_disable_caches = True
    denoiser, backend = subject.denoiser, subject.extent.backend
    compiled = torch.compile(denoiser.module, backend=backend, dynamic=False)

    @torch.no_grad()
    def call() -> None:
        compiled(*denoiser.arguments, **denoiser.options)

    first = _seconds_and_graphs(call, subject.device)
    pairs = [[timed_ms(one, subject.device) for one in (denoiser, call)] for _ in range(1 + 3 * subject.extent.rounds)]
    found = {
        "seconds_to_compile": first[0],
        "graphs": first[1],
        "eager_ms": Percentiles.of([eager for eager, _ in pairs[1:]]).model_dump(),
        "ratio": Percentiles.of([ours / eager for eager, ours in pairs[1:]]).model_dump(),
    }
    if first[0] > PATIENCE:
        return found
    removal = subject.operators[len(subject.operators) // 2].candidates[0].removal
    with modified(denoiser.module, [removal]):
        again = _seconds_and_graphs(call, subject.device)
    return {**found, "modified": removal.operator, "seconds_when_modified": again[0], "graphs_when_modified": again[1]}


def _seconds_and_graphs(call: Callable[[], None], device: torch.device) -> tuple[float, int]:
    """How long a call takes, and how many graphs are compiled for it."""
    before = counters["stats"]["unique_graphs"]
    seconds = timed_ms(call, device) / 1000
    return seconds, counters["stats"]["unique_graphs"] - before


if __name__ == "__main__":
    main()
