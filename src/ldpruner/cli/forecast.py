"""What scoring or a whole recipe would take, for people and as JSON."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ldpruner.cli.answer import Answer
from ldpruner.cli.console import Table, terminal
from ldpruner.errors import LdPrunerError
from ldpruner.estimate import NOTE, PEAK_TFLOPS, TFLOPS, UTILISATION, Denoising, Stage, count_denoising, scoring_stage
from ldpruner.pipelines.probe import SIZE, default_size
from ldpruner.pruning.serialization import load_meta

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from ldpruner.budget import Budget
    from ldpruner.pipelines.probe import Probe

LARGE_SIDE = 1024  # pixels: a default that is worth a word before scoring starts


def scoring_answer(
    model: str,
    probe: "Probe",
    budgets: "Sequence[Budget] | None",
    *,
    gpu: str | None,
    tflops: float | None,
    shown: Mapping[str, Any],
    **operators: Any,
) -> Answer:
    """What `score` would take, counted on the model's configuration.

    Args:
        budgets: None is exhaustive scoring.
        gpu, tflops: see `sustained`.
        shown: further settings, for JSON.
        operators: which are scored (see `count_denoising`).
    """
    pipeline = load_meta(model)
    probe = probe.completed(pipeline)
    denoising = count_denoising(pipeline, probe, **operators)
    tflops, note = sustained(gpu, tflops)
    count = None if budgets is None else len(budgets)
    levels: dict[str, Any] = {
        level: {
            "modifications": modifications,
            **_numbers(scoring_stage(denoising, probe, count, tflops, level)),
            "exhaustive": _numbers(scoring_stage(denoising, probe, None, tflops, level)),
        }
        for level, modifications in denoising.levels.items()
        if modifications
    }
    data = {
        "model": model,
        **shown,
        "probe": probe.model_dump(mode="json"),
        **denoising.model_dump(exclude={"pipeline", "levels"}),
        **{name: list(operators[name]) for name in ("ignore", "targets")},
        **_numbers(scoring_stage(denoising, probe, count, tflops)),
        "granularities": levels,
        "note": note,
    }
    chosen = f"scored: {denoising.granularity}, {denoising.modifications:,} modifications"
    return Answer(data, [counted(model, denoising), chosen, _levels(levels), note], "the same without --dry-run")


def sustained(gpu: str | None, tflops: float | None) -> tuple[float, str]:
    """What a GPU sustains, in TFLOP/s, and how hours are counted from it.

    Args:
        gpu: one of `PEAK_TFLOPS`.
        tflops: the number itself; without both, it is a common one.
    """
    if gpu is None:
        return tflops or TFLOPS, NOTE.format(tflops=tflops or TFLOPS)
    tflops = UTILISATION * PEAK_TFLOPS[gpu]
    return tflops, f"{NOTE.format(tflops=tflops)}; that is {UTILISATION:.0%} of the dense peak of an {gpu}"


def announce(
    model: str, pipeline: "DiffusionPipeline", probe: "Probe", budgets: "Sequence[Budget] | None", **operators: Any
) -> None:
    """Says what scoring takes where a pipeline's own size is large, and that a smaller one takes less.

    Args:
        pipeline: the opened one; what it takes is counted on the configuration of `model`.
        probe, budgets, operators: as of `scoring_answer`.
    """
    size = default_size(pipeline)
    if size is None or max(size) < LARGE_SIDE or not SIZE.keys().isdisjoint(probe.call) or terminal.quiet:
        return
    half = {name: side // 2 for name, side in zip(SIZE, size, strict=True)}
    count = None if budgets is None else len(budgets)
    with contextlib.suppress(LdPrunerError, OSError):  # a forecast stops no run
        plain = load_meta(model)
        probes = [each.completed(plain) for each in (probe, probe.with_call(half))]
        hours = [scoring_stage(count_denoising(plain, each, **operators), each, count).hours for each in probes]
        terminal.note(
            f"{size[0]} x {size[1]} pixels, the pipeline's default: scoring takes at most {hours[0]:,.1f} hours at "
            f"{TFLOPS:g} TFLOP/s; with --height {half['height']} --width {half['width']} it takes {hours[1]:,.1f}"
        )


def counted(model: str, denoising: Denoising) -> str:
    """What is pruned, in one line."""
    return (
        f"{model}: {denoising.operators:,} operators, {denoising.modifications:,} modifications; "
        f"{denoising.parameters / 1e6:,.1f} M parameters, {denoising.macs / 1e9:,.1f} GMACs a call on one row, "
        f"{denoising.rows} row{'s' if denoising.rows > 1 else ''} a step of one sample"
    )


def stages(taken: Mapping[str, Stage]) -> Table:
    """Calls, work and hours of each stage."""
    rows = [(name, *_cells(_numbers(stage))) for name, stage in taken.items()]
    return Table(("stage", ">denoiser calls, at most", ">TFLOP", ">GPU hours"), rows)


def _levels(levels: Mapping[str, Mapping[str, Any]]) -> Table:
    """What scoring takes at each granularity, and what it would take exhaustively."""
    head = (">denoiser calls, at most", ">TFLOP", ">GPU hours", ">exhaustive calls", ">TFLOP", ">GPU hours")
    rows = [
        (level, f"{taken['modifications']:,}", *_cells(taken), *_cells(taken["exhaustive"]))
        for level, taken in levels.items()
    ]
    return Table(("granularity", ">modifications", *head), rows)


def _numbers(stage: Stage) -> dict[str, Any]:
    return {"denoiser_calls": stage.calls, "tflop": 2 * stage.macs / 1e12, "hours": stage.hours}


def _cells(numbers: Mapping[str, Any]) -> tuple[str, str, str]:
    return f"{numbers['denoiser_calls']:,}", f"{numbers['tflop']:,.0f}", f"{numbers['hours']:,.2f}"
