"""Which of diffusers' pipelines can be finetuned after pruning: without data, and with data.

    pip install ftfy torchvision
    OMP_NUM_THREADS=1 python -m benchmarks.recovery --tests diffusers/tests [--only NAME ...]

The pipelines are those that `benchmarks.support` could prune. After the largest removal, one training step is taken on
two samples of the original, and one on two pictures, videos or sounds of noise.
"""

import argparse
import functools
import logging
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import ldpruner
from benchmarks.records import RESULTS, cell, markdown, read
from benchmarks.support import Configuration, apart, configurations, largest_removable
from benchmarks.support_parts import instead_of_the_hub
from ldpruner.errors import DenoiserNotFound, LdPrunerError, one_line
from ldpruner.finetuning import Training
from ldpruner.finetuning.recorded_calls import RecordedCalls
from ldpruner.finetuning.trainer import Finetuning
from ldpruner.pipelines.running import accepted_arguments
from ldpruner.selection.plan import Plan, PlannedRemoval

SAMPLES, STEPS = 2, 9  # more steps than those of a few-step model
LIMIT = 150  # seconds for one pipeline
ONE_STEP = Training(max_train_steps=1, train_batch_size=2, validation_fraction=0.5, validation_steps=1)
YES, OWN_CALLS = "yes", "yes, on the original's own calls"
COLUMNS = {"without_data": "without data", "with_data": "with data"}
RATE = 16_000  # Hz, of the sounds


def main() -> None:
    """Tries every pipeline that was pruned and not tried."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", type=Path, required=True, help="the folder tests of a checkout of diffusers")
    parser.add_argument("--only", nargs="+", help="names of pipeline classes")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    choices = configurations(options.tests)
    for record in read("support"):
        name = record["settings"]["pipeline"]
        if record["result"]["stage"] == "pruned" and (not options.only or name in options.only):
            settings = {"pipeline": name, "diffusers": diffusers.__version__}
            cell("recovery", settings, functools.partial(_first_that_runs, choices.get(name, [])), options.results)


def _first_that_runs(choices: list[Configuration]) -> dict[str, Any]:
    """The outcomes for the first configuration that can be pruned."""
    result: dict[str, Any] = {"error": "no small configuration of it is known"}
    for configuration in choices:
        result = apart(functools.partial(_outcomes, configuration), LIMIT)
        if "error" not in result:
            break
    logging.info("%s", result)
    return result


def _outcomes(configuration: Configuration) -> dict[str, Any]:
    """Whether a pruned pipeline can be finetuned without and with data, or why not."""
    try:
        with instead_of_the_hub():
            teacher, inputs = configuration()
            teacher.set_progress_bar_config(disable=True)
            probe, operators = _watched(teacher, inputs)
            removal = largest_removable(teacher, operators, probe)
            plan = Plan(removed=(PlannedRemoval(removal=removal),), component=operators[0].component)
            return {
                column: outcome(teacher, plan, probe, data(teacher, probe) if column == "with_data" else None)
                for column in COLUMNS
            }
    except BaseException as error:  # noqa: BLE001  (any may come)
        return {"error": one_line(error, 300)}


def _watched(teacher: DiffusionPipeline, inputs: dict[str, Any]) -> tuple[ldpruner.Probe, Any]:
    """The probe and the operators; in the configuration's own steps where the pipeline takes no others."""
    own = int(inputs.pop("num_inference_steps", inputs.pop("steps", STEPS)))
    probe = ldpruner.Probe(samples=SAMPLES, steps=STEPS, call=inputs)
    try:
        return probe, ldpruner.find_operators(teacher, call=probe.arguments(teacher, [0]))
    except DenoiserNotFound:
        probe = probe.replace(steps=own)
        return probe, ldpruner.find_operators(teacher, call=probe.arguments(teacher, [0]))


def outcome(teacher: DiffusionPipeline, plan: Plan, probe: ldpruner.Probe, rows: list[dict[str, Any]] | None) -> str:
    """One training step of a pruned pipeline; why it cannot be taken."""
    pruned = ldpruner.prune(teacher, plan, probe=probe)
    try:
        work = Finetuning(pruned, teacher, rows, probe=probe, component=plan.component, training=ONE_STEP)
        for _ in work:
            pass
        losses = work.finish().losses
    except Exception as error:  # noqa: BLE001  (any may come)
        return str(error) if isinstance(error, LdPrunerError) else one_line(error, 300)
    if not all(map(math.isfinite, losses)):
        return f"the loss is {losses}"
    return OWN_CALLS if isinstance(work.distillation.examples, RecordedCalls) else YES


def data(teacher: DiffusionPipeline, probe: ldpruner.Probe) -> list[dict[str, Any]]:
    """Two rows of data: noise, with a caption, a class, and what else the call of the pipeline takes."""
    random = np.random.default_rng(0)
    makes_sound = "audio" in type(teacher).__name__.lower() or hasattr(teacher, "vocoder")
    rows: list[dict[str, Any]] = []
    for index in range(SAMPLES):
        picture = Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8))
        sound = {"array": random.uniform(-1, 1, 2 * RATE), "sampling_rate": RATE}
        row = {"audio": sound} if makes_sound else {"image": picture, "conditioning_image": picture.rotate(90)}
        embeddings = {
            name: value[0] for name, value in probe.call.items() if isinstance(value, torch.Tensor) and "image" in name
        }
        rows.append({"text": ("a red cat", "the blue sea")[index], "label": index, **embeddings, **row})
    return [{**row, "prompt": row["text"]} for row in rows] if accepted_arguments(teacher, {"prompt": ""}) else rows


def summary() -> Iterator[str]:
    """How many of the pruned pipelines can be finetuned, by the kind of examples."""
    results = [record["result"] for record in read("recovery") if "error" not in record["result"]]
    rows = []
    for column, title in COLUMNS.items():
        outcomes = [result[column] for result in results]
        counts = [outcomes.count(YES), outcomes.count(OWN_CALLS)]
        rows.append([title, str(len(results)), *map(str, counts), f"{sum(counts) / max(1, len(results)):.0%}"])
    yield from markdown(["", "pruned pipelines", YES, OWN_CALLS, "share"], rows)


def table() -> Iterator[str]:
    """A row for each reason why pruned pipelines cannot be finetuned, or learn from the original's own calls."""
    pipelines: dict[tuple[str, str], list[str]] = defaultdict(list)
    for record in read("recovery"):
        name, result = record["settings"]["pipeline"], record["result"]
        outcomes = {title: result[column] for column, title in COLUMNS.items()} if "error" not in result else {}
        for title, reason in (outcomes or {"not tried": result["error"]}).items():
            if reason != YES:
                plain = reason.replace("|", "\\|").replace("`", "'").replace("<", "&lt;").replace(name, "it")
                pipelines[title, plain].append(name)
    rows = [[title, ", ".join(names), reason] for (title, reason), names in sorted(pipelines.items(), reverse=True)]
    yield from markdown(["", "pipelines", "outcome"], rows)


if __name__ == "__main__":
    main()
