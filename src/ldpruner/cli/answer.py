"""What a command answers, and the options that all commands share."""

import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from ldpruner.cli.console import Table, terminal
from ldpruner.cli.options import JSON, QUIET, VERBOSE


@dataclass(frozen=True)
class Answer:
    """What a command found out.

    Attributes:
        data: what `--json` prints.
        parts: lines and tables for people; the first line says the result in words.
        then: the command that comes next.
        wait: goes on after the answer is printed, until Ctrl-C.
    """

    data: Any
    parts: Sequence[str | Table] = ()
    then: str = ""
    wait: Callable[[], None] | None = None


@dataclass(frozen=True)
class MadeBy:
    """Marks a command's parameter that a function makes from options: the parameters of that function."""

    function: Callable[..., Any]


def settings(**values: Any) -> Answer:
    """The answer of a dry run: the resolved settings, as JSON in any case."""
    return Answer({name: value for name, value in values.items() if value is not None})


def command(function: Callable[..., Answer | None]) -> Callable[..., None]:
    """Gives a command the shared options and those of its parameters with `MadeBy`, and prints its answer."""
    parameters: list[inspect.Parameter] = []
    makers: dict[str, Callable[..., Any]] = {}
    for parameter in inspect.signature(function).parameters.values():
        marks = [mark for mark in getattr(parameter.annotation, "__metadata__", ()) if isinstance(mark, MadeBy)]
        if marks:
            makers[parameter.name] = marks[0].function
            parameters += inspect.signature(marks[0].function).parameters.values()
        else:
            parameters.append(parameter)
    parameters += inspect.signature(_configure).parameters.values()

    @functools.wraps(function)
    def wrapped(**options: Any) -> None:
        as_json = _make(_configure, options)
        made = {name: _make(maker, options) for name, maker in makers.items()}
        answer = function(**made, **options)
        if answer is not None:
            show(answer, as_json=as_json)
            if answer.wait is not None:
                sys.stdout.flush()  # a pipe would hold the answer back
                answer.wait()

    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    setattr(wrapped, "__signature__", inspect.Signature(keywords))  # noqa: B010
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped


def _make(maker: Callable[..., Any], options: dict[str, Any]) -> Any:
    """The result of a function for its own options, which are taken out of all."""
    return maker(**{name: options.pop(name) for name in inspect.signature(maker).parameters})


def _configure(as_json: JSON = False, quiet: QUIET = False, verbose: VERBOSE = False) -> bool:
    """Sets how much is said, and returns whether the answer is JSON."""
    if quiet and verbose:
        raise typer.BadParameter("--quiet and --verbose: choose one")
    terminal.configure(quiet=quiet, verbose=verbose)
    quiet_libraries(verbose=verbose)
    return as_json


def show(answer: Answer, *, as_json: bool) -> None:
    """Prints an answer: as JSON, or for people with the next command at the end; `--quiet` prints the first line."""
    if as_json or not answer.parts:
        terminal.json(answer.data)
        return
    if terminal.quiet:
        terminal.say(next(part for part in answer.parts if isinstance(part, str)))
        return
    for before, part in zip((None, *answer.parts), answer.parts, strict=False):
        if isinstance(part, Table):
            if isinstance(before, Table):
                terminal.say("")
            terminal.show(part)
        else:
            terminal.say(part)
    if answer.then:
        terminal.say(f"next: {answer.then}", wrap=False)


def quiet_libraries(*, verbose: bool) -> None:
    """Tells diffusers and transformers, before they are imported, to report errors only and to show no bars."""
    if verbose:
        return
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    for name in ("torchao", "torch.utils._pytree"):  # which warn on every import, of parts that nobody asked for
        logging.getLogger(name).setLevel(logging.ERROR)
