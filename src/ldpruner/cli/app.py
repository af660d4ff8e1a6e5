"""The application: its commands in the order of the work, and what becomes of errors."""

import io
import sys
from typing import Annotated, Any

import typer

from ldpruner import __version__
from ldpruner.cli import INTERRUPTED, STOPPED, demo, export, inspect, prune, recipe, recover, report, serve, transfer
from ldpruner.cli.answer import command
from ldpruner.cli.console import shortened, terminal
from ldpruner.errors import LdPrunerError, is_out_of_memory, one_line

COMMANDS = {
    "Prune": (inspect.operators, prune.score, prune.select, prune.prune, prune.run),
    "Recover and measure": (recover.finetune, recover.evaluate, report.report, inspect.bench),
    "Take it elsewhere": (export.export, transfer.apply, transfer.diff, transfer.push, serve.serve),
    "Whole runs": (recipe.recipe, demo.demo),
}
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

app = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False, context_settings=CONTEXT)
for panel, functions in COMMANDS.items():
    for function in functions:
        summary = (function.__doc__ or "").partition("\n")[0]  # whole: typer shortens it otherwise
        app.command(short_help=summary, rich_help_panel=panel)(command(function))

# typer brings a click of its own and exports of its errors only this one.
ClickError: Any = typer.BadParameter.__mro__[2]


def _version(wanted: bool) -> None:
    if wanted:
        terminal.say(f"ldpruner {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def ldpruner(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Prune latent diffusion models: any diffusers pipeline, a budget, and proof."""
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")


def run_app() -> int:
    """Runs the command of the process, and returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a letter stops no run
    try:
        code = app(standalone_mode=False, prog_name="ldpruner")
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except (ClickError, LdPrunerError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        if terminal.verbose and error.__cause__ is not None:
            terminal.trace(error.__cause__)
        terminal.note(f"error: {shortened(_problem(error))}", "red")
        return 2 if isinstance(error, ClickError) else 1
    if code == INTERRUPTED:  # typer makes it of KeyboardInterrupt
        terminal.note(STOPPED, "yellow")
    return code if isinstance(code, int) else 0


def _problem(error: Any) -> str:
    """What went wrong, in one line."""
    if isinstance(error, ClickError):
        return str(error.format_message())
    if isinstance(error, (MemoryError, RuntimeError)):
        return "out of memory; try --batch-size 1 or --dtype float16"
    # the others are of the system: a full disk, a missing permission, a name that is too long
    return str(error) if isinstance(error, LdPrunerError) else one_line(error)
