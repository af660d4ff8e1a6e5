"""What a command answers, and the options that all commands share."""

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from ldpruner.cli.console import Table, terminal

DETAILS = "Output"  # the panel of the shared options in --help

JSON = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object; all else goes to standard error.", rich_help_panel=DETAILS),
]
QUIET = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress, no hints: the result only.", rich_help_panel=DETAILS)
]
VERBOSE = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also what diffusers and transformers say.", rich_help_panel=DETAILS)
]
DRY_RUN = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved settings and stop.", rich_help_panel=DETAILS)
]


@dataclass(frozen=True)
class Answer:
    """What a command found out.

    Attributes:
        data: what `--json` prints.
        parts: lines and tables for people; the first line says the result in words.
        then: the command that comes next.
    """

    data: Any
    parts: Sequence[str | Table] = ()
    then: str = ""


def settings(**values: Any) -> Answer:
    """The answer of a dry run: the resolved settings, as JSON in any case."""
    return Answer({name: value for name, value in values.items() if value is not None})


def command(function: Callable[..., Answer | None]) -> Callable[..., None]:
    """Gives a command the shared options, and prints its answer."""
    shared = {"as_json": JSON, "quiet": QUIET, "verbose": VERBOSE}

    @functools.wraps(function)
    def wrapped(*, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
        if quiet and verbose:
            raise typer.BadParameter("--quiet and --verbose: choose one")
        terminal.configure(quiet=quiet, verbose=verbose)
        quiet_libraries(verbose=verbose)
        answer = function(**options)
        if answer is not None:
            show(answer, as_json=as_json)

    signature = inspect.signature(function)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in shared.items()
    ]
    parameters = [*signature.parameters.values(), *added]
    setattr(wrapped, "__signature__", signature.replace(parameters=parameters, return_annotation=None))  # noqa: B010
    wrapped.__annotations__ = {**function.__annotations__, **shared, "return": None}
    return wrapped


def show(answer: Answer, *, as_json: bool) -> None:
    """Prints an answer: as JSON, or for people with the next command at the end."""
    if as_json or not answer.parts:
        terminal.json(answer.data)
        return
    for before, part in zip((None, *answer.parts), answer.parts, strict=False):
        if isinstance(part, Table):
            if isinstance(before, Table):
                terminal.say("")
            terminal.show(part)
        else:
            terminal.say(part)
    if answer.then and not terminal.quiet:
        terminal.say(f"next: {answer.then}", wrap=False)


def quiet_libraries(*, verbose: bool) -> None:
    """Tells diffusers and transformers, before they are imported, to report errors only and to show no bars."""
    if verbose:
        return
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
