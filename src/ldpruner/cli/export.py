"""The command that exports a denoiser to another runtime."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ldpruner.cli import options as opt
from ldpruner.cli import parsing
from ldpruner.cli.answer import Answer, settings
from ldpruner.cli.console import terminal
from ldpruner.cli.prune import opened

if TYPE_CHECKING:
    from ldpruner.pipelines.exported import ExportDescription

FORMAT = Annotated[
    Literal["onnx", "openvino", "torch-export"],
    typer.Option("--format", help="onnx for ONNX Runtime, openvino, or torch-export."),
]
MODEL = Annotated[str | None, typer.Argument(help="A folder, a Hub id, or zoo:NAME. Default: the pipeline of --run.")]
RUN = Annotated[Path | None, typer.Option(help="A run folder: its recovered pipeline, or its pruned one.")]
OUT = Annotated[Path | None, typer.Option(help="Where to save. Default: exported-FORMAT in the run folder.")]


def export(
    *,
    model: MODEL = None,
    run: RUN = None,
    file_format: FORMAT,
    out: OUT = None,
    component: opt.COMPONENT = None,
    steps: opt.STEPS = 25,
    prompts: opt.PROMPTS = None,
    guidance: opt.GUIDANCE = None,
    pipeline_arg: opt.PIPELINE_ARG = None,
    device: opt.DEVICE = None,
    dtype: opt.DTYPE = None,
    dry_run: opt.DRY_RUN = False,
) -> Answer:
    """Export the denoiser to another runtime, and compare a whole denoising run.

    Saves a pipeline with the exported denoiser; bench and ldpruner.load open it. The text encoder and the autoencoder
    stay in torch. If the latents differ, nothing is saved.

    Example: ldpruner export --run runs/a --format onnx

    Example: ldpruner export zoo:satellite --format openvino --out exported/satellite
    """
    if (model is None) == (run is None):
        raise typer.BadParameter("give a MODEL or --run, one of both")
    if run is None and out is None:
        raise typer.BadParameter("--out is missing: where to save the exported pipeline")
    source, target, probe = model or "", out, parsing.probe_of(prompts, guidance, pipeline_arg, 2, steps)
    if run is not None:
        from ldpruner.run_folder import RunFolder

        folder = RunFolder(run)
        folder.check_pruned()
        source, target = str(folder.latest()), out or run / f"exported-{file_format}"
        probe = parsing.changed(folder.scores().probe, 2, prompts, pipeline_arg)
        probe = probe.replace(steps=steps, guidance=guidance if guidance is not None else probe.guidance)
    if dry_run:
        shown = {"format": file_format, "out": str(target), "probe": probe.model_dump(mode="json")}
        return settings(model=source, component=component, **shown, device=device, dtype=dtype)
    from ldpruner.exporting.export import export as export_pipeline

    assert target is not None
    pipeline = opened(source, device, dtype)
    description = export_pipeline(
        pipeline, target, file_format, probe=probe, component=component, progress=terminal.progress
    )
    return _answer(description, target, source)


def _answer(description: "ExportDescription", folder: Path, original: str) -> Answer:
    """Where the exported pipeline is, how near it is, and which sizes it takes."""
    parity = description.parity
    assert parity is not None
    lines = [
        f"exported to {description.format}: latents differ by {parity.difference:.1e} after {parity.steps} steps "
        f"(tolerance {parity.tolerance:g})",
        f"free sizes: {description.free}",
        f"exported pipeline: {folder}",
    ]
    data = {"folder": str(folder), **description.model_dump(mode="json")}
    return Answer(data, lines, f"ldpruner bench {shlex.quote(original)} {shlex.quote(str(folder))}")
