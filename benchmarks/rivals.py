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
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

import ldpruner
from benchmarks.channels import Examples, channel_pruned, denoising_gradients, to_latency
from benchmarks.criteria import RIVALS, Case
from benchmarks.judging import judged
from benchmarks.records import cell
from benchmarks.subjects import SUBJECTS, Subject, open_subject
from ldpruner.bench import Spread
from ldpruner.costs import timed_ms
from ldpruner.errors import BudgetError, FinetuningError
from ldpruner.finetuning import Finetuning, Training
from ldpruner.fingerprints import count_parameters
from ldpruner.latents import draw_latents
from ldpruner.operators import denoiser_macs
from ldpruner.pipelines import find_denoiser
from ldpruner.scores import Scores
from ldpruner.scoring import Scoring
from ldpruner.selection import Plan
from ldpruner.surgery import prune
from ldpruner.workflow import fit
from zoo.digits import DIGITS
from zoo.emoji import EMOJI
from zoo.recipe import Recipe
from zoo.satellite import SATELLITE

CUTS = (0.5, 0.35, 0.65)  # of the latency
SAMPLES, SCORING_STEPS = 8, 6  # of ld-pruner's probe
STEPS = 10  # with which pictures are drawn and timed
DRAWING_STEPS = 25  # with which the original draws what is learnt from
ROUNDS = 25  # pairs of timings
BATCH = 32
RECIPES: Mapping[str, Recipe] = {"satellite": SATELLITE, "emoji": EMOJI, "digits": DIGITS}
# optimizer steps: a few per cent of what the denoiser was trained with, so that a cell takes minutes
BUDGETS = {"satellite": 500, "emoji": 300, "digits": 500}
RATES = {"satellite": 1e-4, "emoji": 3e-4, "digits": 3e-4}
PICTURES = 256
MANY_PICTURES = 1024  # for the headline
OURS, ORIGINAL, FEWER = "ld-pruner", "original", "fewer steps"
NO_DATA, NEW_WEIGHTS = "ld-pruner without data", "ld-pruner with new weights"
GUIDED = "ld-pruner with autoguidance"
SAME_PLAN = (NO_DATA, GUIDED, NEW_WEIGHTS)  # as ld-pruner: they differ in what comes after
OPERATORS = {OURS if name == "knapsack" else name: one for name, one in RIVALS.items()}
CHANNELS = ("channels by magnitude", "channels by Taylor")
NAMES = (*OPERATORS, *CHANNELS, FEWER, ORIGINAL, *SAME_PLAN)
AUTOGUIDANCE = 1.0
TAUGHT = ("digits",)  # by the original, not the data: its weights hold guidance, of which they know nothing
# a tenth of the training's compute; in small batches, of which that makes more steps
SMALL_BATCH: Mapping[str, Any] = {"batch": 8, "average": 0.997, "check_every": 400}
HEADLINE: Mapping[str, tuple[str, float, int]] = {
    "satellite": (NO_DATA, 0.5, 2000),
    "emoji": (GUIDED, 0.5, 900),
    "digits": (OURS, 0.5, 5600),
}
# what is measured at every cut; all else only where half is removed, unless asked for
EVERYWHERE = (OURS, "paper", "random", "hand rule", ORIGINAL)
EXAMPLES = 64  # from which channels' gradients are taken
OWN_SAMPLES = 1024  # of the original, where there is no data

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Bench:
    """A model with what is the same for all its rivals.

    Attributes:
        subject: the model, its judge and data.
        folder: for scores, examples and checkpoints.
        training: of each rival.
        pictures: that measure each.
        device: where rivals are finetuned and drawn. Each is made and timed where the model is.
    """

    subject: Subject
    folder: Path
    training: Training
    pictures: int
    device: str

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

    def training_of(self, name: str, seed: int) -> Training:
        """A rival's training: on the task alone, or on the original's output alone."""
        teacher = float(is_taught(self.subject.name, name))
        losses = {"task": 1.0 - teacher, "output": teacher, "features": 0.0}
        losses["autoguidance"] = AUTOGUIDANCE if name == GUIDED else 0.0
        return self.training.model_copy(update={"seed": seed, **losses})

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
    parser.add_argument("--pictures", type=int, default=PICTURES, help="that are judged")
    parser.add_argument("--device", default="cpu", help="that finetunes and draws; latency is a processor's")
    parser.add_argument("--runs", type=Path, default=Path("runs/rivals"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for model in options.models:
        subject = open_subject(model, options.data / model)
        bench = Bench(subject, options.runs / model, _training(model), options.pictures, options.device)
        for seed in options.seeds:
            if options.headline:
                _headline(bench, seed)
                continue
            for cut in options.cuts:
                for name in options.rivals or (NAMES if cut == CUTS[0] else EVERYWHERE):
                    _cell(bench, name, cut, seed)


# the same for every rival; early stopping would give some of them fewer steps than others
SETTINGS: dict[str, Any] = {"warmup": 20, "average": 0.99, "patience": None, "check_every": 50}


def _training(model: str) -> Training:
    return Training(steps=BUDGETS[model], batch=BATCH, rate=RATES[model], **SETTINGS)


def is_taught(model: str, name: str) -> bool:
    """Whether a rival learns the original's output instead of the task."""
    return name == NO_DATA or model in TAUGHT


def _headline(bench: Bench, seed: int) -> None:
    name, cut, steps = HEADLINE[bench.subject.name]
    training = bench.training.model_copy(update={"steps": steps, **SMALL_BATCH})
    longer = dataclasses.replace(bench, training=training, pictures=MANY_PICTURES)
    for one in (name, ORIGINAL):
        _cell(longer, one, cut, seed)


def _cell(bench: Bench, name: str, cut: float, seed: int) -> dict[str, Any]:
    model = bench.subject.name
    cut = 0.0 if name == ORIGINAL else cut
    training = bench.training_of(name, seed)
    unused = {"seed"} if training.autoguidance else {"seed", "autoguidance"}  # older cells know of none
    settings = {
        "model": model,
        "weights": bench.subject.weights,
        "rival": name,
        "cut": cut,
        "seed": seed,
        "pictures": bench.pictures,
        "steps": STEPS,
        "training": training.model_dump(exclude=unused) if name != FEWER else None,
    }
    place = f"rivals/{model}/{name.replace(' ', '-')}-{cut:g}-{seed}-{bench.training.steps}"
    return cell(place, settings, lambda: _measured(bench, name, cut, seed, place.replace("/", "-")))


def _measured(bench: Bench, name: str, cut: float, seed: int, place: str) -> dict[str, Any]:
    try:
        pipeline, plan = _pruned(bench, name, cut, seed)
    except BudgetError as error:
        return {"failure": str(error)}
    steps = max(1, round(STEPS * (1 - cut))) if name == FEWER else STEPS
    found = _costs(bench, pipeline, steps, seed)
    found["removed"] = [one.removal.model_dump(mode="json") for one in plan.removed] if plan else None
    with bench.on_device(pipeline):
        found["before"] = judged(bench.subject, pipeline, bench.pictures, steps, seed)
        # of itself the original learns nothing
        if name != FEWER and not (name == ORIGINAL and is_taught(bench.subject.name, name)):
            found |= _recovered(bench, name, pipeline, seed, place)
            found["compute"] = _compute(bench, name, found["macs"] / found["original_macs"])
    return found


def _recovered(bench: Bench, name: str, pipeline: DiffusionPipeline, seed: int, place: str) -> dict[str, Any]:
    """What finetuning brings; some plans leave a network that cannot be trained."""
    # measured again, a plan may be another, and not that of the checkpoint
    shutil.rmtree(bench.folder / "cells" / place, ignore_errors=True)
    work = bench.finetuning(pipeline, bench.training_of(name, seed), place, data=name != NO_DATA)
    try:
        for _ in work:
            pass
        history = work.finish()
        # the last ones for all, as the best by a held-out loss of some rivals are those at the start
        work.state.put_(work.state.average)
    except FinetuningError as error:
        return {"diverged": str(error)}
    shutil.rmtree(bench.folder / "cells" / place, ignore_errors=True)
    return {"after": judged(bench.subject, pipeline, bench.pictures, STEPS, seed), "held_out": history.held_out}


def _pruned(bench: Bench, name: str, cut: float, seed: int) -> tuple[DiffusionPipeline, Plan | None]:
    """What a rival makes of the model so that a share of the latency is gone, as measured."""
    original = bench.subject.pipeline
    if name in (ORIGINAL, FEWER):
        return prune(original, Plan(removed=())), None
    if name in SAME_PLAN:
        plan = _plan_of_ours(bench, cut, seed)
        pruned = prune(original, plan)
        if name == NEW_WEIGHTS:
            _renew_(find_denoiser(pruned).module, seed)
        return pruned, plan
    case = Case(original, bench.scores(seed), seed)
    left = functools.partial(_latency, bench, steps=STEPS, seed=seed)
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
    usual = dataclasses.replace(bench, training=_training(model), pictures=PICTURES)
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
    lesson = bench.finetuning(copy, bench.training_of(ORIGINAL, seed), "gradients").lesson
    chosen = torch.randperm(len(lesson.examples), generator=torch.Generator().manual_seed(seed))[:EXAMPLES]
    latents, given = lesson.examples.batch(chosen, torch.full_like(chosen, lesson.copies - 1))
    names = ("encoder_hidden_states",)[: len(given)]
    conditions = {name: one.flatten(0, 1) for name, one in zip(names, given, strict=True)}
    return denoising_gradients(bench.subject.pipeline, Examples(latents, conditions), seed=seed)


def _latency(bench: Bench, pipeline: DiffusionPipeline, steps: int, seed: int) -> Spread:
    """The time of drawing one sample's latents over the original's, in turn.

    On a processor it is the time that this process was given: others on the machine do not count. With one thread on
    an idle machine it is the latency.
    """
    probe = bench.probe(seed)
    other = probe.model_copy(update={"steps": steps})
    pairs = [(_timed(bench.subject.pipeline, probe), _timed(pipeline, other)) for _ in range(ROUNDS + 1)]
    return Spread.of([second / first for first, second in pairs[1:]])


def _timed(pipeline: DiffusionPipeline, probe: ldpruner.Probe) -> float:
    if pipeline.device.type != "cpu":
        return timed_ms(lambda: draw_latents(pipeline, probe, [0]), pipeline.device)
    started = time.process_time()
    draw_latents(pipeline, probe, [0])
    return time.process_time() - started


def _costs(bench: Bench, pipeline: DiffusionPipeline, steps: int, seed: int) -> dict[str, Any]:
    pair = [find_denoiser(one) for one in (bench.subject.pipeline, pipeline)]
    macs = [denoiser_macs(one) for one in pair]
    return {
        "latency_ratio": _latency(bench, pipeline, steps, seed).model_dump(),
        "statistic": "of pairs in turn; processor time of one thread" if pipeline.device.type == "cpu" else "of pairs",
        "parameters": count_parameters(pair[1].module),
        "original_parameters": count_parameters(pair[0].module),
        "macs": macs[1],
        "original_macs": macs[0],
    }


def _compute(bench: Bench, name: str, kept: float) -> float:
    """Finetuning's share of the denoiser's training: backwards counts as two calls, whoever teaches as one."""
    model = bench.subject.name
    schedules = (RECIPES[model].denoiser_schedule, RECIPES[model].refinement_schedule)
    trained = sum(schedule.steps * schedule.batch for schedule in schedules)
    calls = 3 * kept + (name == GUIDED or is_taught(model, name)) + (kept if name == GUIDED else 0)
    return bench.training.steps * bench.training.batch * calls / (3 * trained)


if __name__ == "__main__":
    main()
