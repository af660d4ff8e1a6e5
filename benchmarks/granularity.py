"""What scoring takes at each granularity, and what the plans of coarse granularities cost.

    OMP_NUM_THREADS=1 python -m benchmarks.granularity [--run runs/granularity] [--models satellite digits emoji]

Counts the denoiser calls of large networks on their configurations. Then scores a model of the zoo once, with every
modification on all samples, and selects from these scores at each granularity.
"""

import argparse
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ldpruner
from benchmarks.coverage import FOLDERS
from benchmarks.records import Record, cell, markdown, read
from ldpruner.errors import BudgetError
from ldpruner.estimate import PEAK_TFLOPS, UTILISATION, Denoising, Stage, count_denoising, scoring_stage
from ldpruner.operators.choosing import GRANULARITIES
from ldpruner.operators.discovery import Granularity
from ldpruner.pipelines.probe import default_size
from ldpruner.pruning.serialization import load_meta
from ldpruner.scoring.adaptive import DEFAULT_BUDGETS
from ldpruner.scoring.results import Scores

STUDY = "granularity"
LARGE = {  # by the name of the folder: as in the table, and the smaller size beside the pipeline's own
    "stable-diffusion-xl-base-1.0": ("SDXL", (512, 512)),
    "stable-diffusion-3-medium": ("SD3 medium", (512, 512)),
    "flux-1-dev": ("Flux.1-dev", (512, 512)),
    "wan2.1-t2v-14b": ("Wan 2.1 14B, 81 frames", (240, 416)),
}
PROBE = ldpruner.Probe(samples=16, steps=25)
ZOO = ("satellite", "digits", "emoji")
ZOO_PROBE: dict[str, Any] = {"samples": 4, "steps": 6}
CUTS = (0.65, 0.5, 0.35)


def main() -> None:
    """Measures every cell that is missing."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/granularity"))
    parser.add_argument("--models", nargs="*", default=ZOO, choices=ZOO)
    options = parser.parse_args()
    for name, (_, small) in LARGE.items():
        for size in (None, small):
            forecast = {"part": "forecast", "pipeline": name, "size": size}
            cell(STUDY, forecast, functools.partial(_forecast, name, size))
    for model in options.models:
        settings = {"part": "plans", "model": f"zoo:{model}", "probe": ZOO_PROBE, "latency": CUTS}
        cell(STUDY, settings, functools.partial(_plans, model, options.run / model))


def _forecast(name: str, size: tuple[int, int] | None) -> dict[str, Any]:
    pipeline = load_meta(FOLDERS / name)
    call = dict(zip(("height", "width"), size, strict=True)) if size else {}
    denoising = count_denoising(pipeline, PROBE.with_call(call).completed(pipeline))
    return {"size": size or default_size(pipeline), **denoising.model_dump()}


def _plans(model: str, run: Path) -> dict[str, Any]:
    probe = ldpruner.Probe(**ZOO_PROBE)
    scores = ldpruner.score_operators(ldpruner.load(f"zoo:{model}"), None, probe, run=run, budgets=None)
    counts = {level: sum(score.candidate.granularity == level for score in scores.scores) for level in GRANULARITIES}
    plans = {level: [_plan(scores, cut, level) for cut in CUTS] for level in GRANULARITIES}
    return {"denoiser_calls": scores.denoiser_calls, "modifications": counts, "plans": plans}


def _plan(scores: Scores, latency: float, granularity: Granularity) -> dict[str, Any] | None:
    """The cost of a plan and how many removals it has; None where the budget cannot be reached."""
    try:
        plan = ldpruner.select(scores, ldpruner.Budget(latency=latency), granularity=granularity)
    except BudgetError:
        return None
    return {"cost": sum(planned.score**2 for planned in plan.removed), "removals": len(plan.removed)}


def forecast_table(gpu: str = "A100") -> Iterator[str]:
    """A row for each large network and granularity, for scoring with the default probe and budgets."""
    head = ["network", "granularity", "modifications", "calls", "PFLOP", f"{gpu} hours", "at half the size"]
    rows = (row for name in LARGE for row in _forecast_rows(name, UTILISATION * PEAK_TFLOPS[gpu]))
    yield from markdown([*head, "exhaustive calls", "hours"], rows)


def _forecast_rows(name: str, tflops: float) -> Iterator[list[str]]:
    records = {
        record["settings"]["size"] is None: record["result"]
        for record in read(STUDY)
        if record["settings"].get("pipeline") == name
    }
    height, width = records[True]["size"]
    own, half = (
        Denoising(**{field: records[is_own][field] for field in Denoising.model_fields}) for is_own in (True, False)
    )
    for level, modifications in own.levels.items():
        stage, exhaustive = (_stage(own, budgets, tflops, level) for budgets in (len(DEFAULT_BUDGETS), None))
        yield [
            f"{LARGE[name][0]}, {width} x {height}",
            f"`{level}`{' (default)' if level == own.granularity else ''}",
            f"{modifications:,}",
            f"{stage.calls:,}",
            f"{2 * stage.macs / 1e15:,.0f}",
            _hours(stage),
            _hours(_stage(half, len(DEFAULT_BUDGETS), tflops, level)),
            f"{exhaustive.calls:,}",
            _hours(exhaustive),
        ]


def _stage(denoising: Denoising, budgets: int | None, tflops: float, level: Granularity) -> Stage:
    return scoring_stage(denoising, PROBE, budgets, tflops, level)


def _hours(stage: Stage) -> str:
    return f"{stage.hours:,.1f}" if stage.hours < 100 else f"{stage.hours:,.0f}"


def plans_table() -> Iterator[str]:
    """A row for each model of the zoo and granularity: cost over that of the plan from everything."""
    head = ["model", "granularity", "modifications", *(f"{cut:.0%} of the latency" for cut in CUTS)]
    yield from markdown(head, _plans_rows())


def _plans_rows() -> Iterator[list[str]]:
    for record in read(STUDY):
        if record["settings"]["part"] == "plans":
            counts, plans = record["result"]["modifications"], record["result"]["plans"]
            for place, level in enumerate(GRANULARITIES):
                scored = sum(counts[coarse] for coarse in GRANULARITIES[: place + 1])
                cells = (_times(*pair) for pair in zip(plans[level], plans["leaf"], strict=True))
                yield [record["settings"]["model"], f"`{level}`", str(scored), *cells]


def _times(plan: Record | None, best: Record) -> str:
    if plan is None:
        return "out of reach"
    return f"{plan['cost'] / best['cost']:.2f} times, {plan['removals']} removals"


if __name__ == "__main__":
    main()
