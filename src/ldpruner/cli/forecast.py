"""What scoring or a whole recipe would take, for people and as JSON."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ldpruner.cli.answer import Answer
from ldpruner.cli.console import Table
from ldpruner.estimate import NOTE, Denoising, Stage, count_denoising, scoring_stage
from ldpruner.pruning.serialization import load_meta

if TYPE_CHECKING:
    from ldpruner.pipelines.probe import Probe


def scoring_answer(
    model: str,
    probe: "Probe",
    budgets: int | None,
    *,
    component: str | None,
    ignore: Sequence[str],
    targets: Sequence[str],
    tflops: float,
    shown: Mapping[str, Any],
) -> Answer:
    """What `score` would take, counted on the model's configuration."""
    pipeline = load_meta(model)
    probe = probe.completed(pipeline)
    denoising = count_denoising(pipeline, probe, component=component, ignore=ignore, targets=targets)
    stage = scoring_stage(denoising, probe, budgets, tflops)
    note = NOTE.format(tflops=tflops)
    data = {
        "model": model,
        **shown,
        "probe": probe.model_dump(mode="json"),
        **denoising.model_dump(exclude={"pipeline"}),
        "ignore": list(ignore),
        "targets": list(targets),
        "denoiser_calls": stage.calls,
        "tflop": 2 * stage.macs / 1e12,
        "hours": stage.hours,
        "note": note,
    }
    return Answer(data, [counted(model, denoising), stages({"scoring": stage}), note], "the same without --dry-run")


def counted(model: str, denoising: Denoising) -> str:
    """What is pruned, in one line."""
    return (
        f"{model}: {denoising.operators:,} operators, {denoising.modifications:,} modifications; "
        f"{denoising.parameters / 1e6:,.1f} M parameters, {denoising.macs / 1e9:,.1f} GMACs a call on one row, "
        f"{denoising.rows} row{'s' if denoising.rows > 1 else ''} a sample"
    )


def stages(taken: Mapping[str, Stage]) -> Table:
    """Calls, work and hours of each stage."""
    rows = [
        (name, f"{stage.calls:,}", f"{2 * stage.macs / 1e12:,.0f}", f"{stage.hours:,.2f}")
        for name, stage in taken.items()
    ]
    return Table(("stage", ">denoiser calls, at most", ">TFLOP", ">GPU hours"), rows)
