"""Which defaults should finetuning have? One setting at a time is changed from the defaults until then.

    python -m benchmarks.finetuning_defaults --data FOLDER [--models emoji] [--seeds 0 1]

FOLDER holds the data of each model, as for `benchmarks.baselines`. Each cell finetunes the committed plan at half of
the latency on samples of the original, without data, with the same optimizer steps unless the length is what changes.
Quality is the Frechet distance to the original's samples on other seeds, in the features of the model's feature
network. The test images are not used: they measure what these defaults give. `--small` is to try the script.
"""

import argparse
import functools
import logging
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

import ldpruner
from benchmarks.baselines import plan_of_ours
from benchmarks.comparison import CUTS, OWN_STEPS, PICTURES, STEPS, Bench, usual_training
from benchmarks.feature_network import distance_between, features_in
from benchmarks.models import MODELS, Model, open_model
from benchmarks.records import RESULTS, Record, cell, markdown, read
from ldpruner.finetuning import Training
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pipelines.running import schedulers
from ldpruner.scoring.importance import Floats

STUDY = "finetuning_defaults"
CUT, PLAN_SEED = CUTS[0], 0
DEFAULTS, PRUNED, ORIGINAL = "former defaults", "not finetuned", "original"
MAX_TRAIN_STEPS = 600  # fewer than the default, so that the study takes hours
FORMER: Mapping[str, Any] = {"max_train_steps": MAX_TRAIN_STEPS, "learning_rate": 1e-4}
SAMPLES = 256  # of the original, as by default
REFERENCE_SAMPLES, REFERENCE_SEED = 1024, 500  # of the original, on seeds that nothing else uses
CHANGES: Mapping[str, Mapping[str, Any]] = {
    DEFAULTS: {},
    **{f"learning_rate={rate:g}": {"learning_rate": rate} for rate in (3e-5, 3e-4, 1e-3)},
    # the decay of diffusers' EMAModel is at most (1 + step) / (10 + step), 0.985 after 600 steps
    **{f"ema_decay={decay:g}": {"ema_decay": decay} for decay in (0.9, 0.0)},
    **{f"feature_kd_weight={weight:g}": {"feature_kd_weight": weight} for weight in (0.0, 1.0)},
    "output_kd_weight=0": {"output_kd_weight": 0.0},
    "task_loss_weight=1": {"task_loss_weight": 1.0},
    "snr_weighting=False": {"snr_weighting": False},  # changes epsilon-prediction only
    **{f"{factor:g} times the steps": {"max_train_steps": round(factor * MAX_TRAIN_STEPS)} for factor in (0.5, 2)},
}
SMALL = {"pictures": 8, "samples": 4, "reference_samples": 8, "train_steps": 2}

logger = logging.getLogger(__name__)


def main(words: Sequence[str] | None = None) -> None:
    """Measures every cell that is missing."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = _options(words)
    torch.set_num_threads(1)
    for name in options.models:
        model = open_model(name, options.data / name)
        study = Study(model, options)
        for seed in options.seeds:
            for change in (ORIGINAL, PRUNED, *_changes_of(model)):
                measure = functools.partial(study.measure, change, seed)
                cell(STUDY, study.settings(change, seed), measure, options.results)


def _options(words: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1))
    parser.add_argument("--runs", type=Path, default=Path("runs/finetuning-defaults"), help="for the examples")
    parser.add_argument("--small", action="store_true", help="few pictures, and few steps of finetuning")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.set_defaults(pictures=PICTURES, samples=SAMPLES, reference_samples=REFERENCE_SAMPLES, train_steps=None)
    options = parser.parse_args(words)
    if options.small and options.results == RESULTS:
        parser.error("--small needs --results: its cells must not be among the committed results")
    vars(options).update(SMALL if options.small else {})
    return options


def _changes_of(model: Model) -> list[str]:
    has_epsilon = schedulers(model.pipeline)[0].config.prediction_type == "epsilon"
    return [name for name in CHANGES if name != "snr_weighting=False" or has_epsilon]


def training_of(change: str, seed: int, train_steps: int | None = None) -> Training:
    """The settings of a cell; every cell takes all of its steps, and keeps the best validated weights."""
    settings = {**FORMER, **CHANGES[change]}
    steps = train_steps or settings["max_train_steps"]
    return Training(**{**settings, "max_train_steps": steps}, seed=seed, early_stopping_patience=None)


class Study:
    """The cells of one model."""

    def __init__(self, model: Model, options: Any) -> None:
        self.model, self.options, self.folder = model, options, options.runs / model.name

    def settings(self, change: str, seed: int) -> dict[str, Any]:
        """What a cell depends on."""
        options = self.options
        return {
            "model": self.model.name,
            "weights": self.model.weights,
            "cut": CUT,
            "change": change,
            "seed": seed,
            "training": self._training(change, seed).model_dump(mode="json") if change in CHANGES else None,
            "pictures": options.pictures,
            "samples": options.samples,
            "reference_samples": options.reference_samples,
        }

    def measure(self, change: str, seed: int) -> dict[str, Any]:
        """The Frechet distance after finetuning, and how training went."""
        if change == ORIGINAL:
            return self._distance(self.model.pipeline, seed)
        bench = Bench(self.model, self.folder, usual_training(self.model.name), PICTURES, "cpu")
        pruned = ldpruner.prune(self.model.pipeline, plan_of_ours(bench, CUT, PLAN_SEED))
        parameters = count_parameters(find_denoiser(pruned).module)
        if change == PRUNED:
            return {"parameters": parameters, **self._distance(pruned, seed)}
        started = time.perf_counter()
        history = self._finetune_(pruned, change, seed)
        seconds = time.perf_counter() - started
        logger.info("finetuning took %.0f s", seconds)
        result = {"parameters": parameters, **self._distance(pruned, seed), "seconds": seconds}
        return {**result, "best_step": history.best_step, "validation_losses": history.validation_losses}

    def _finetune_(self, pruned: DiffusionPipeline, change: str, seed: int) -> ldpruner.History:
        """Finetunes as `ldpruner.finetune` does; all cells of a seed share their examples."""
        run, shared = self.folder / "cell", self.folder / "examples"
        shutil.rmtree(run, ignore_errors=True)  # of a cell that was interrupted
        run.mkdir(parents=True)
        shared.mkdir(exist_ok=True)
        (run / "examples").symlink_to(shared.resolve())
        probe = self.model.probe(self.options.samples, OWN_STEPS, seed)
        training = self._training(change, seed)
        history = ldpruner.finetune(pruned, self.model.pipeline, probe=probe, training=training, run=run)
        shutil.rmtree(run)
        return history

    def _training(self, change: str, seed: int) -> Training:
        return training_of(change, seed, self.options.train_steps)

    def _distance(self, pipeline: DiffusionPipeline, seed: int) -> dict[str, Any]:
        pixels = self.model.sample(pipeline, self.options.pictures, STEPS, seed)
        return distance_between(features_in(self.model, pixels), self._reference)

    @cached_property
    def _reference(self) -> Floats:
        pipeline, count = self.model.pipeline, self.options.reference_samples
        return features_in(self.model, self.model.sample(pipeline, count, STEPS, REFERENCE_SEED))


# Tables


def table(records: Callable[[str], list[Record]] = read) -> Iterator[str]:
    """A row for each change: the distance of each model over that of the former defaults with the same seed."""
    distances = _by_change(records)
    models = [model for model in MODELS if any(model == key[0] for key in distances)]
    head = ["change", *(f"zoo:{model}, distance" for model in models)]
    head += [*(f"zoo:{model}, change" for model in models), "mean change", "minutes"]
    rows = []
    changes = [name for name in (ORIGINAL, PRUNED, *CHANGES) if any(name == key[1] for key in distances)]
    for change in changes:
        cells = {model: distances.get((model, change), {}) for model in models}
        ratios = {model: _ratios(cells[model], distances.get((model, DEFAULTS), {})) for model in models}
        results = [result for of_model in cells.values() for result in of_model.values()]
        minutes = [result["seconds"] / 60 for result in results if "seconds" in result]
        measured = [ratio for values in ratios.values() for ratio in values]
        row = [change, *(_mean_distance(cells[model]) for model in models)]
        row += [_change(ratios[model]) for model in models]
        rows.append([*row, _change(measured), f"{np.mean(minutes):.1f}" if minutes else ""])
    yield from markdown(head, rows)


def length_table(records: Callable[[str], list[Record]] = read) -> Iterator[str]:
    """A row for each model and length: the examples per thousand kept parameters, and the distance."""
    distances, rows = _by_change(records), []
    lengths = [change for change in CHANGES if change == DEFAULTS or "max_train_steps" in CHANGES[change]]
    for model in MODELS:
        for change in sorted(lengths, key=lambda change: training_of(change, 0).max_train_steps):
            results = distances.get((model, change), {})
            if results:
                training = training_of(change, 0)
                parameters = next(iter(results.values()))["parameters"]
                examples = training.max_train_steps * training.train_batch_size / parameters * 1000
                row = [f"zoo:{model}", f"{parameters / 1e6:.2f} M", str(training.max_train_steps)]
                rows.append([*row, f"{examples:.2f}", _mean_distance(results)])
    head = ["model", "kept parameters", "steps", "examples per thousand parameters", "Fréchet distance"]
    yield from markdown(head, rows)


def _by_change(records: Callable[[str], list[Record]]) -> Mapping[tuple[str, str], dict[int, dict[str, Any]]]:
    """The results of each model and change, by seed."""
    results: dict[tuple[str, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for record in records(STUDY):
        settings = record["settings"]
        results[settings["model"], settings["change"]][settings["seed"]] = record["result"]
    return results


def _ratios(results: Mapping[int, Any], defaults: Mapping[int, Any]) -> list[float]:
    shared = [seed for seed in results if seed in defaults]
    return [results[seed]["frechet_distance"] / defaults[seed]["frechet_distance"] for seed in shared]


def _mean_distance(results: Mapping[int, Any]) -> str:
    values = [result["frechet_distance"] for result in results.values()]
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}" if values else ""


def _change(ratios: Sequence[float]) -> str:
    """The geometric mean of ratios as a change."""
    return f"{np.exp(np.mean(np.log(ratios))) - 1:+.1%}" if ratios else ""


if __name__ == "__main__":
    main()
