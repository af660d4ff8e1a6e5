"""The command that shows a run as a page."""

from pathlib import Path
from typing import Annotated

import typer

from ldpruner.cli import options as opt
from ldpruner.cli.answer import Answer, settings
from ldpruner.cli.console import terminal

OUT = Annotated[Path | None, typer.Option("--out", help="The file. Default: report.html in the run folder.")]


def report(run: opt.RUN, out: OUT = None, dry_run: opt.DRY_RUN = False) -> Answer:
    """Write a run folder as one page: what was removed, what it gained and what it cost.

    The page needs nothing else: send it, or open it from disk.

    Example: ldpruner report --run runs/a
    """
    from ldpruner.progress import reported
    from ldpruner.report.page import write_report

    if dry_run:
        return settings(run=str(run), out=None if out is None else str(out))
    page = reported(terminal.progress, "writing the report", lambda: write_report(run, out))
    return Answer({"report": str(page)}, [f"the report is {page}"])
