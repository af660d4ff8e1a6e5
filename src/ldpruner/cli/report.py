"""The command that shows a run as a page."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ldpruner.cli import options as opt
from ldpruner.cli.answer import Answer, settings
from ldpruner.cli.console import terminal
from ldpruner.errors import LdPrunerError

RUN = Annotated[Path | None, typer.Option("--run", help="The run folder.")]
RUNS = Annotated[list[Path] | None, typer.Argument(help="Run folders, to compare them.")]
OUT = Annotated[
    Path | None,
    typer.Option("--out", help="The file. Default: report.html in the run folder; comparison.html for several."),
]


def report(runs: RUNS = None, run: RUN = None, out: OUT = None, dry_run: opt.DRY_RUN = False) -> Answer:
    """Write a run folder as one page: what was removed, what it gained and what it cost. Several are compared.

    The page needs nothing else: send it, or open it from disk.

    Example: ldpruner report --run runs/a

    Example: ldpruner report runs/a runs/b runs/c --out comparison.html
    """
    folders = [*([run] if run is not None else []), *(runs or [])]
    if not folders:
        raise typer.BadParameter("name a run folder, such as --run runs/a")
    if dry_run:
        return settings(runs=[str(folder) for folder in folders], out=None if out is None else str(out))
    page = _written(folders[0] if len(folders) == 1 else folders, out)
    return Answer({"report": str(page)}, [f"the report is {page}"])


def with_report(answer: Answer, run: Path) -> Answer:
    """Writes the report of a run folder, and says where it is; the answer counts also without one."""
    try:
        line = f"report: {_written(run)}"
    except LdPrunerError as error:
        line = f"no report: {error}"
    return replace(answer, parts=[*answer.parts, line])


def _written(run: Path | list[Path], out: Path | None = None) -> Path:
    from ldpruner.progress import reported
    from ldpruner.report.page import write_report

    return reported(terminal.progress, "writing the report", lambda: write_report(run, out))
