"""The command that serves the live comparison."""

from typing import Annotated

import typer

from ldpruner.cli import options as opt
from ldpruner.cli import parsing
from ldpruner.cli.answer import Answer, settings
from ldpruner.cli.console import terminal

HOST = Annotated[str, typer.Option(help="The address to listen on. Others than 127.0.0.1 let other machines in.")]
PORT = Annotated[int, typer.Option(help="The port to listen on; 0 takes a free one.", min=0, max=65535)]


def serve(
    run: opt.RUN,
    host: HOST = "127.0.0.1",
    port: PORT = 7860,
    guidance: opt.GUIDANCE = None,
    pipeline_arg: opt.PIPELINE_ARG = None,
    device: opt.DEVICE = None,
    dtype: opt.DTYPE = None,
    dry_run: opt.DRY_RUN = False,
) -> Answer:
    """Compare the original and the pruned pipeline of a run live, in a browser.

    The page samples both at a seed and shows the seconds that each took. Ctrl-C ends the command.

    Example: ldpruner serve --run runs/a
    """
    from ldpruner.run_folder import RunFolder

    folder = RunFolder(run)
    probe = parsing.changed(folder.scores().probe, 1, None, pipeline_arg)
    probe = probe.replace(guidance=guidance if guidance is not None else probe.guidance)
    folder.check_pruned()
    if dry_run:
        place = {"host": host, "port": port, "device": device, "dtype": dtype}
        pipelines = {"original": folder.model(), "compared": str(folder.latest())}
        return settings(**pipelines, probe=probe.model_dump(mode="json"), **place)
    from ldpruner.report.server import serve_run

    server = serve_run(run, host=host, port=port, probe=probe, device=device, dtype=dtype, progress=terminal.progress)
    line = f"live comparison: {server.address} (Ctrl-C ends it)"
    return Answer({"address": server.address}, [line], wait=server.wait)
