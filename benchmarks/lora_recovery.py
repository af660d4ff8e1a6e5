"""Recovery by LoRA beside full finetuning on the zoo: quality, trained parameters, and memory of a step.

    python -m benchmarks.lora_recovery --data FOLDER [--models digits] [--seeds 0]

Both train the same plan, at half of the latency, for the same steps on the same data. The qualities are cells of
`benchmarks.baselines`. Memory is that of the tensors that are alive during a step, without the teacher.
"""

import argparse
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines import measure_cell, plan_of_ours
from benchmarks.comparison import CUTS, LORA, OURS, PICTURES, Bench, usual_training
from benchmarks.models import MODELS, open_model
from benchmarks.records import cell, markdown, read
from ldpruner.finetuning.memory import training_memory
from ldpruner.finetuning.trainer import step_generator
from ldpruner.pruning.surgery import prune

STUDY = "lora_recovery"
METHODS = {OURS: "all weights", LORA: "LoRA, rank 32"}


def main() -> None:
    """Measures every cell that is missing."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0,))
    parser.add_argument("--runs", type=Path, default=Path("runs/baselines"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.models:
        model = open_model(name, options.data / name)
        bench = Bench(model, options.runs / name, usual_training(name), PICTURES, "cpu")
        for seed in options.seeds:
            for method in METHODS:
                settings = {"model": name, "method": method, "cut": CUTS[0], "seed": seed}
                settings["batch"] = bench.training.train_batch_size
                cell(STUDY, settings, functools.partial(_memory, bench, method, seed))
                measure_cell(bench, method, CUTS[0], seed)


def _memory(bench: Bench, method: str, seed: int) -> dict[str, Any]:
    """The trained parameters, and the bytes that are alive during a step."""
    pruned = prune(bench.model.pipeline, plan_of_ours(bench, CUTS[0], seed))
    training = bench.training_of(method, seed)
    work = bench.finetuning(pruned, training, f"memory-{method.replace(' ', '-')}-{seed}")
    losses = functools.partial(work.losses, work.module)
    memory = training_memory(
        work.module, work.state.optimizer, lambda: next(iter(losses(step_generator(training, 0))))
    )
    return {"trained": sum(weight.numel() for weight in work.state.weights), "memory": memory.model_dump()}


def table() -> Iterator[str]:
    """A row for each model and method; distances of several seeds are a mean and their range."""
    qualities = {
        (settings["model"], settings["method"], settings["cut"], settings["seed"]): record["result"]
        for record in read("baselines")
        if (settings := record["settings"])["method"] in METHODS and settings["pictures"] == PICTURES
    }
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in read(STUDY):
        settings = record["settings"]
        quality = qualities[tuple(settings[name] for name in ("model", "method", "cut", "seed"))]
        groups.setdefault((settings["model"], settings["method"]), []).append({**record["result"], **quality})
    head = ["model", "trained", "Fréchet distance, pruned", "recovered", "trained parameters"]
    head += ["memory of a step", "of it gradients and optimizer"]
    yield from markdown(head, [_row(model, method, results) for (model, method), results in groups.items()])


def _row(model: str, method: str, results: list[dict[str, Any]]) -> list[str]:
    before, after = ([result[stage]["frechet_distance"] for result in results] for stage in ("before", "after"))
    memory = [result["memory"] for result in results]
    return [
        f"zoo:{model}",
        METHODS[method],
        _mean(before, "{:.2f}"),
        _mean(after, "{:.2f}"),
        _mean([result["trained"] / 1e6 for result in results], "{:.2f} M"),
        _mean([part["peak"] / 2**20 for part in memory], "{:,.0f} MiB"),
        _mean([(part["gradients"] + part["optimizer"]) / 2**20 for part in memory], "{:,.0f} MiB"),
    ]


def _mean(values: list[float], text: str) -> str:
    """The mean, and the range where values differ."""
    mean, low, high = (text.format(value) for value in (sum(values) / len(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


if __name__ == "__main__":
    main()
