"""ld-pruner beside its rivals on the same work: the quality that is left at the same measured latency.

    python -m benchmarks.rivals --data FOLDER [--models emoji] [--cuts 0.5] [--seeds 0 1] [--rivals ld-pruner paper]
    python -m benchmarks.rivals --data FOLDER --headline

FOLDER holds the data of each model as `FOLDER/NAME/train.zip` and `test.zip`, see the model cards. Every rival prunes
until the same share of the latency is gone, as measured; then it is finetuned with the same settings, seed and data.
One JSON for each model, cut, rival and seed. The headline is half of the latency or less, finetuned with at most a
tenth of the training's compute.
"""

import argparse
import dataclasses
import functools
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from torch import nn

from benchmarks.channels import Examples, channel_pruned, denoising_gradients, to_latency
from benchmarks.contest import (
    CHANNELS,
    CUTS,
    FEWER,
    GUIDED,
    LED,
    NAMES,
    NEW_WEIGHTS,
    NO_DATA,
    OPERATORS,
    ORIGINAL,
    OURS,
    PICTURES,
    SAME_PLAN,
    STEPS,
    TAUGHT,
    Bench,
    usual_training,
)
from benchmarks.criteria import Case
from benchmarks.judging import judged, perfect
from benchmarks.records import cell
from benchmarks.subjects import SUBJECTS, open_subject
from ldpruner.errors import BudgetError, FinetuningError
from ldpruner.finetuning import Training
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pruning.surgery import prune
from ldpruner.selection.plan import Plan
from ldpruner.workflow import fit

MANY_PICTURES = 1024  # for the headline
# at most a tenth of the training's compute; in small batches, of which that makes more steps
SMALL_BATCH: Mapping[str, Any] = {"train_batch_size": 8, "ema_decay": 0.997, "validation_steps": 400}


class Headline(NamedTuple):
    """A longer finetuning.

    Attributes:
        name: of the variant of ld-pruner.
        cut: of the latency.
        steps, first: of training; and before it of training that is not led.
        changes: of the usual settings.
    """

    name: str
    cut: float
    steps: int
    first: int = 0
    changes: Mapping[str, Any] = MappingProxyType({})


# strength and noise levels were chosen on training images
LED_SOMEWHERE: Mapping[str, Any] = {"learning_rate": 3e-4, "autoguidance_scale": 3.0, "guidance_interval": (0.2, 0.7)}
FASTER: Mapping[str, Any] = {"learning_rate": 1e-3}
LED_FAR: Mapping[str, Any] = {"learning_rate": 1e-3, "autoguidance_scale": 1.5}
LED_FARTHER: Mapping[str, Any] = {"learning_rate": 1e-3, "autoguidance_scale": 2.0}
HEADLINE: Mapping[str, Headline] = {
    "satellite": Headline(LED, 0.5, 3500, first=500, changes=LED_SOMEWHERE),
    "emoji": Headline(GUIDED, 0.5, 900),
    "digits": Headline(LED, 0.5, 12500, first=500, changes=LED_FAR),
}
TRIED: Mapping[str, tuple[Headline, ...]] = {
    "satellite": (
        Headline(LED, 0.5, 3000, first=1000, changes=LED_SOMEWHERE),
        Headline(LED, 0.5, 8000, first=1000, changes=LED_SOMEWHERE),
        Headline(NO_DATA, 0.5, 2000),
    ),
    "emoji": (Headline(OURS, 0.5, 1760),),
    "digits": (
        Headline(LED, 0.5, 20000, first=500, changes=LED_FARTHER),
        Headline(LED, 0.5, 11000, first=2000, changes=FASTER),
        Headline(LED, 0.5, 17000, first=3000, changes=FASTER),
        Headline(TAUGHT, 0.5, 20000, changes=FASTER),
        Headline(GUIDED, 0.5, 11000, first=2000),
    ),
}
EXAMPLES = 64  # from which channels' gradients are taken

logger = logging.getLogger(__name__)


def main() -> None:
    """Measures every cell that is missing."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=SUBJECTS)
    parser.add_argument("--cuts", nargs="+", type=float, default=CUTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0,))
    parser.add_argument("--rivals", nargs="+", choices=NAMES, help="default: all at 50 %%, some at other cuts")
    parser.add_argument("--headline", action="store_true", help="only half of the latency or less, finetuned longer")
    parser.add_argument("--tried", action="store_true", help="only what was tried in place of the headline")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="that are judged")
    parser.add_argument("--device", default="cpu", help="that finetunes and draws; latency is a processor's")
    parser.add_argument("--runs", type=Path, default=Path("runs/rivals"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for model in options.models:
        subject = open_subject(model, options.data / model)
        bench = Bench(subject, options.runs / model, usual_training(model), options.pictures, options.device)
        for seed in options.seeds:
            if options.headline:
                _headline(bench, seed)
            if options.tried:
                _longer(bench, TRIED[model], seed)
            if options.headline or options.tried:
                continue
            for cut in options.cuts:
                for name in options.rivals or bench.names(cut):
                    _cell(bench, name, cut, seed)


def _headline(bench: Bench, seed: int) -> None:
    model = bench.subject.name
    headline = HEADLINE[model]
    original = Headline(ORIGINAL, headline.cut, headline.first + headline.steps)
    _longer(bench, (headline, Headline(FEWER, headline.cut, headline.steps), original), seed)
    settings = {"model": model, "weights": bench.subject.weights, "pictures": MANY_PICTURES, "seed": seed}
    cell(f"perfect_denoiser/{model}-{seed}", settings, functools.partial(perfect, bench.subject, MANY_PICTURES, seed))


def _longer(bench: Bench, headlines: Iterable[Headline], seed: int) -> None:
    for one in headlines:
        training = bench.training.model_copy(update={"max_train_steps": one.steps, **SMALL_BATCH, **one.changes})
        longer = dataclasses.replace(
            bench, training=training, first=one.first, pictures=MANY_PICTURES, plans_anew=True
        )
        _cell(longer, one.name, one.cut, seed)


def _cell(bench: Bench, name: str, cut: float, seed: int) -> dict[str, Any]:
    model = bench.subject.name
    cut = 0.0 if name == ORIGINAL else cut
    training = bench.training_of(name, seed)
    unused = {"seed"} | bench.idle(training)
    settings = {
        "model": model,
        "weights": bench.subject.weights,
        "rival": name,
        "cut": cut,
        "seed": seed,
        "pictures": bench.pictures,
        "steps": STEPS,
        "training": training.model_dump(exclude=unused) if name != FEWER else None,
        **({"first": bench.first} if bench.first else {}),
    }
    place = f"rivals/{model}/{name.replace(' ', '-')}-{cut:g}-{seed}-{bench.training.max_train_steps}"
    return cell(place, settings, lambda: _measured(bench, name, cut, seed, place.replace("/", "-")))


def _measured(bench: Bench, name: str, cut: float, seed: int, place: str) -> dict[str, Any]:
    try:
        pipeline, plan = _pruned(bench, name, cut, seed)
    except BudgetError as error:
        return {"failure": str(error)}
    steps = max(1, round(STEPS * (1 - cut))) if name == FEWER else STEPS
    found = bench.costs(pipeline, steps, seed)
    found["removed"] = [one.removal.model_dump(mode="json") for one in plan.removed] if plan else None
    with bench.on_device(pipeline):
        found["before"] = judged(bench.subject, pipeline, bench.pictures, steps, seed)
        if name != FEWER:
            found |= _recovered(bench, name, pipeline, seed, place)
            found["compute"] = bench.compute(name, found["macs"] / found["original_macs"])
    return found


def _recovered(bench: Bench, name: str, pipeline: DiffusionPipeline, seed: int, place: str) -> dict[str, Any]:
    """What finetuning brings; some plans leave a network that cannot be trained."""
    training, data = bench.training_of(name, seed), name != NO_DATA
    try:
        if bench.first:
            _finetune_(bench, pipeline, bench.training_of(name, seed, first=True), f"{place}-first", data=data)
        held_out = _finetune_(bench, pipeline, training, place, data=data)
    except FinetuningError as error:
        return {"diverged": str(error)}
    return {"after": judged(bench.subject, pipeline, bench.pictures, STEPS, seed), "held_out": held_out}


def _finetune_(
    bench: Bench, pipeline: DiffusionPipeline, training: Training, place: str, *, data: bool
) -> dict[int, float]:
    """Trains a pipeline in place; returns its held-out losses."""
    # measured again, a plan may be another, and not that of the checkpoint
    shutil.rmtree(bench.folder / "cells" / place, ignore_errors=True)
    work = bench.finetuning(pipeline, training, place, data=data)
    for _ in work:
        pass
    history = work.finish()
    # the last ones for all, as the best by a held-out loss of some rivals are those at the start
    work.state.load_weights_(work.state.average)
    shutil.rmtree(bench.folder / "cells" / place, ignore_errors=True)
    return history.validation_losses


def _pruned(bench: Bench, name: str, cut: float, seed: int) -> tuple[DiffusionPipeline, Plan | None]:
    """What a rival makes of the model so that a share of the latency is gone, as measured."""
    original = bench.subject.pipeline
    if name in (ORIGINAL, FEWER):
        return prune(original, Plan(removed=())), None
    if name in SAME_PLAN and not bench.plans_anew:
        plan = _plan_of_ours(bench, cut, seed)
        pruned = prune(original, plan)
        if name == NEW_WEIGHTS:
            _renew_(find_denoiser(pruned).module, seed)
        return pruned, plan
    case = Case(original, bench.scores(seed), seed)
    left = functools.partial(bench.latency, steps=STEPS, seed=seed)
    if name in CHANNELS:
        gradients = _gradients(bench, seed) if name == CHANNELS[1] else None
        narrowed = functools.partial(channel_pruned, original, gradients=gradients)
        return _narrowed(narrowed, lambda one: left(one).median, 1 - cut), None
    planner = OPERATORS.get(name, OPERATORS[OURS])(case)

    def made(kept: float) -> tuple[DiffusionPipeline, Plan]:
        plan = planner(1 - kept)
        return prune(original, plan), plan

    return fit(made, lambda one: left(one[0]).median, 1 - cut)


def _plan_of_ours(bench: Bench, cut: float, seed: int) -> Plan:
    model = bench.subject.name
    usual = dataclasses.replace(bench, training=usual_training(model), first=0, pictures=PICTURES, plans_anew=False)
    found = _cell(usual, OURS, cut, seed)["result"]
    if "failure" in found:
        raise BudgetError(found["failure"])
    return Plan.model_validate({"removed": found["removed"]})


def _narrowed(
    narrowed: Callable[[float], DiffusionPipeline], left: Callable[[DiffusionPipeline], float], wanted: float
) -> DiffusionPipeline:
    reached = to_latency(narrowed, left, wanted)
    if reached.latency > wanted:
        raise BudgetError(f"the fastest cut of channels measured latency={reached.latency:.3f}")
    return reached.pipeline


def _renew_(network: nn.Module, seed: int) -> None:
    """Draws the weights anew, as each layer of torch does when it is made."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in network.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()


def _gradients(bench: Bench, seed: int) -> dict[str, torch.Tensor]:
    copy = prune(bench.subject.pipeline, Plan(removed=()))
    distillation = bench.finetuning(copy, bench.training_of(ORIGINAL, seed), "gradients").distillation
    chosen = torch.randperm(len(distillation.examples), generator=torch.Generator().manual_seed(seed))[:EXAMPLES]
    latents, given = distillation.examples.batch(chosen, torch.full_like(chosen, distillation.copies - 1))
    names = ("encoder_hidden_states",)[: len(given)]
    conditions = {name: one.flatten(0, 1) for name, one in zip(names, given, strict=True)}
    return denoising_gradients(bench.subject.pipeline, Examples(latents, conditions), seed=seed)


if __name__ == "__main__":
    main()
