"""When is pruning the right choice? Pruning, fewer steps, a cache and int8 weights at equal latency.

    python -m benchmarks.choices --data FOLDER [--models emoji] [--steps 25 10]

FOLDER holds the data of each model, as for `benchmarks.baselines`. For each target of the latency, a choice gets the
setting whose measured time is nearest: how many steps, or in how many steps the cache is filled once. Plans are the
committed ones of `benchmarks.baselines`; pruned networks are finetuned on samples of the original. Latency is that of
whole calls on one sample, in turn with the original. Distances are in the features of the model's feature network: to
the test images, and to the original's picture of the same seed. `--small` stands in for the study, to try the script.
"""

import argparse
import bisect
import copy
import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

import ldpruner
from benchmarks.baselines import finetune_, plan_of_ours
from benchmarks.comparison import NO_DATA, PICTURES, Bench, recorded, usual_training
from benchmarks.feature_network import features_in, quality_of
from benchmarks.models import MODELS, open_model
from benchmarks.records import RESULTS, cell, markdown, read
from ldpruner.errors import one_line
from ldpruner.evaluation.metrics import cosine_distance, mean
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.running import run_pipeline
from ldpruner.profiling.benchmark import Percentiles
from ldpruner.pruning.opening import open_pipeline
from ldpruner.scoring.importance import Floats

STUDY = "choices"
ORIGINAL, PRUNED, FEWER_STEPS, CACHE, INT8 = "original", "pruned", "fewer steps", "cache", "int8"
PRUNED_FEWER, PRUNED_CACHE, PRUNED_INT8 = (f"{PRUNED} + {tool}" for tool in (FEWER_STEPS, CACHE, INT8))
TARGETS = (0.65, 0.5, 0.35)  # of the original's latency
LIGHTER = {0.5: 0.65, 0.35: 0.5}  # the plan for a target to which a second tool brings it
CHOICES = {  # with their targets; int8 has no setting that changes its latency
    **{ORIGINAL: (None,), INT8: (None,), PRUNED: TARGETS, FEWER_STEPS: TARGETS, CACHE: TARGETS},
    **{PRUNED_FEWER: tuple(LIGHTER), PRUNED_CACHE: tuple(LIGHTER), PRUNED_INT8: TARGETS},
}
STEPS = (25, 10)  # of the original
ROUNDS, SEARCH_ROUNDS = 25, 5  # pairs of timings
REACHED = 0.05  # above the target
SMALL = {"pictures": 8, "training_steps": 2, "own_samples": 4, "rounds": 1}

logger = logging.getLogger(__name__)


class DoesNotApply(Exception):
    """A tool cannot be used on a network."""


@dataclass(frozen=True)
class Variant:
    """A way to sample: a pipeline, its steps, and in how many steps its cache is filled once."""

    pipeline: DiffusionPipeline
    steps: int
    cache_interval: int | None = None


def main(words: Sequence[str] | None = None) -> None:
    """Measures every cell that is missing."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = _options(words)
    torch.set_num_threads(1)
    for name in options.models:
        model = open_model(name, options.data / name)
        training = usual_training(name).replace(max_train_steps=options.training_steps or _usual_steps(name))
        bench = Bench(model, options.runs / name, training, options.pictures, "cpu", own_samples=options.own_samples)
        for steps in options.steps:
            study = Choices(bench, steps, options.rounds, options.seed)
            for choice, targets in CHOICES.items():
                for target in targets:
                    measure = functools.partial(study.measure, choice, target)
                    settings = {"model": name, "choice": choice, "target": target, **study.settings}
                    cell(STUDY, settings, measure, options.results)


def _usual_steps(model: str) -> int:
    return usual_training(model).max_train_steps


def _options(words: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS, help="of the original")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/choices"), help="for recovered pipelines")
    parser.add_argument("--small", action="store_true", help="few pictures, timings and steps of finetuning")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.set_defaults(pictures=PICTURES, training_steps=None, own_samples=Bench.own_samples, rounds=ROUNDS)
    options = parser.parse_args(words)
    if options.small and options.results == RESULTS:
        parser.error("--small needs --results: its cells must not be among the committed results")
    vars(options).update(SMALL if options.small else {})
    return options


class Choices:
    """All choices for a model that takes some steps."""

    def __init__(self, bench: Bench, steps: int, rounds: int, seed: int) -> None:
        self.bench, self.model, self.steps, self.rounds, self.seed = bench, bench.model, steps, rounds, seed
        self.training = bench.training_of(NO_DATA, seed)
        self.original = Variant(bench.model.pipeline, steps)

    @property
    def settings(self) -> dict[str, Any]:
        """What a cell of any choice depends on."""
        return {
            "weights": self.model.weights,
            "steps": self.steps,
            "seed": self.seed,
            "pictures": self.bench.pictures,
            "rounds": self.rounds,
            "training": recorded(self.training),
            "own_samples": self.bench.own_samples,
        }

    def measure(self, choice: str, target: float | None) -> dict[str, Any]:
        """The setting, the latency and the distances of a choice, or why it does not apply."""
        try:
            variant = self._variant(choice, target)
        except DoesNotApply as error:
            return {"does_not_apply": str(error)}
        ratio = self._ratio(variant, self.rounds)
        pixels = self._sample(variant)
        paired = mean(cosine_distance(features_in(self.model, pixels), self._original_features))
        result = {
            "steps": variant.steps,
            "cache_interval": variant.cache_interval,
            "latency_ratio": ratio.model_dump(),
            **quality_of(self.model, pixels),
            "paired_distance": paired.value,
            "paired_interval": paired.interval,
        }
        return {**result, "noise_floor": self._noise_floor} if choice == ORIGINAL else result

    # Variants

    def _variant(self, choice: str, target: float | None) -> Variant:
        tools = choice.split(" + ")
        pipeline = self.model.pipeline
        if PRUNED in tools and target is not None:
            has_room = FEWER_STEPS in tools or CACHE in tools
            pipeline = self._recovered(1 - (LIGHTER[target] if has_room else target))
        if INT8 in tools:
            pipeline = with_int8(pipeline)
        if target is not None and FEWER_STEPS in tools:
            return self._nearest(lambda steps: Variant(pipeline, steps), range(1, self.steps + 1), target)
        if target is not None and CACHE in tools:
            return self._nearest(
                lambda interval: Variant(with_cache(pipeline, interval), self.steps, interval),
                range(self.steps, 1, -1),
                target,
            )
        return Variant(pipeline, self.steps)

    def _nearest(self, make: Callable[[int], Variant], settings: Sequence[int], target: float) -> Variant:
        """The variant whose latency is nearest to the target; later settings take longer."""

        @functools.cache
        def ratio(setting: int) -> float:
            return self._ratio(make(setting), min(self.rounds, SEARCH_ROUNDS)).median

        place = bisect.bisect_left(settings, target, key=ratio)
        return make(min(settings[max(0, place - 1) : place + 1], key=lambda setting: abs(ratio(setting) - target)))

    def _recovered(self, cut: float) -> DiffusionPipeline:
        """The pruned pipeline, finetuned on samples of the original; the folder keeps it."""
        steps = self.training.max_train_steps
        folder = self.bench.folder / f"recovered-{cut:.2f}-{self.seed}-{steps}"
        if not folder.exists():
            pruned = ldpruner.prune(self.model.pipeline, plan_of_ours(self.bench, round(cut, 2), self.seed))
            started = time.perf_counter()
            finetune_(self.bench, pruned, self.training, f"{folder.name}-training", data=False)
            logger.info("%s took %.0f s", folder.name, time.perf_counter() - started)
            ldpruner.save(pruned, folder)
        return open_pipeline(folder, "cpu")

    # Measurements

    def _ratio(self, variant: Variant, rounds: int) -> Percentiles:
        """The time of a whole call on one sample over the original's, pair by pair; the first pair does not count."""
        pairs = [(self._timed(self.original), self._timed(variant)) for _ in range(rounds + 1)]
        return Percentiles.of([second / first for first, second in pairs[1:]])

    def _timed(self, variant: Variant) -> float:
        """Processor time of one thread, in seconds, so that other work on the machine does not count."""
        probe = self.model.probe(1, variant.steps, self.seed).replace(call={"output_type": "np"})
        arguments = probe.arguments(variant.pipeline, [0])
        started = time.process_time()
        run_pipeline(variant.pipeline, arguments)
        return time.process_time() - started

    def _sample(self, variant: Variant, seed: int | None = None) -> torch.Tensor:
        seed = self.seed if seed is None else seed
        return self.model.sample(variant.pipeline, self.bench.pictures, variant.steps, seed)

    @cached_property
    def _original_features(self) -> Floats:
        return features_in(self.model, self._sample(self.original))

    @cached_property
    def _noise_floor(self) -> float:
        """The paired distance of the original's pictures on other seeds."""
        other = features_in(self.model, self._sample(self.original, self.seed + 1))
        return mean(cosine_distance(other, self._original_features)).value


def with_int8(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """A copy whose denoiser has int8 weights in its linear layers (torchao)."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantized = copy.deepcopy(pipeline)
    quantize_(find_denoiser(quantized).module, Int8WeightOnlyConfig())
    return quantized


def with_cache(pipeline: DiffusionPipeline, interval: int) -> DiffusionPipeline:
    """A copy with DeepCache (Ma et al. 2023, arXiv 2312.00858): inner blocks run once in so many steps.

    Raises:
        DoesNotApply: a block that the cache needs was removed.
    """
    from DeepCache import DeepCacheSDHelper

    cached = copy.deepcopy(pipeline)
    helper = DeepCacheSDHelper(pipe=cached)
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    try:
        helper.enable()
    except AttributeError as error:
        raise DoesNotApply(f"DeepCache needs a block that was removed: {one_line(error)}") from error
    return cached


# Tables


def table(records: Callable[[str], list[dict[str, Any]]] = read) -> Iterator[str]:
    """A row for each model, number of steps, target and choice; the nearest to the test images in bold."""
    head = ["model", "target", "choice", "setting", "latency ratio", "Fréchet distance", "paired distance"]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records(STUDY):
        settings = record["settings"]
        groups.setdefault((settings["model"], settings["steps"], settings["target"]), []).append(record)
    yield from markdown(head, (row for group in groups.values() for row in _rows(group)))


def _rows(group: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    reaching = [record["result"] for record in group if _reaches(record)]
    best = min((result["frechet_distance"] for result in reaching), default=None)
    for record in group:
        settings, result = record["settings"], record["result"]
        target = f"{settings['target']:.0%}" if settings["target"] else ""
        start = [f"zoo:{settings['model']}, {settings['steps']} steps", target, settings["choice"]]
        if "does_not_apply" in result:
            reason, _, _ = result["does_not_apply"].partition(":")
            yield [*start, f"does not apply: {reason}", "", "", ""]
            continue
        is_best = settings["target"] is not None and _reaches(record) and result["frechet_distance"] == best
        distance = _with_interval(result["frechet_distance"], result["interval"], 2)
        yield [
            *start,
            _setting(record),
            _latency(record),
            f"**{distance}**" if is_best else distance,
            _paired(result),
        ]


def _setting(record: dict[str, Any]) -> str:
    steps, interval = record["result"]["steps"], record["result"]["cache_interval"]
    if interval is not None:
        return f"filled every {interval} steps"
    return f"{steps} steps" if steps != record["settings"]["steps"] else ""


def _reaches(record: dict[str, Any]) -> bool:
    """Whether a choice is as fast as its target; int8 weights have none, and can reach the largest."""
    target, result = record["settings"]["target"] or max(TARGETS), record["result"]
    return "latency_ratio" in result and result["latency_ratio"]["median"] <= target + REACHED


def _latency(record: dict[str, Any]) -> str:
    ratio = record["result"]["latency_ratio"]
    spread = f"{ratio['median']:.1%} ({ratio['p10']:.1%} to {ratio['p90']:.1%})"
    is_short = record["settings"]["choice"] != ORIGINAL and not _reaches(record)
    return f"{spread}, does not reach" if is_short else spread


def _paired(result: dict[str, Any]) -> str:
    if "noise_floor" in result:
        return f"noise floor {result['noise_floor']:.4f}"
    return _with_interval(result["paired_distance"], result["paired_interval"], 4)


def _with_interval(value: float, interval: Sequence[float], digits: int) -> str:
    low, high = interval
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    main()
