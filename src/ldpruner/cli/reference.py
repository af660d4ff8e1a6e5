"""The reference of the command line, made from the commands: `python -m ldpruner.cli.reference > docs/cli.md`."""

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from typer.models import ArgumentInfo, OptionInfo

HEADER = """# Command line

This page is made from the commands: `python -m ldpruner.cli.reference > docs/cli.md`.

MODEL is a folder, a Hub id, or `zoo:NAME`. Every command takes `--json` (one JSON object on standard output),
`--quiet` and `--verbose`. A mistake is one line and exit code 1 or 2; Ctrl-C is exit code 130. To resume, run the same
command again. `ldpruner --install-completion` installs completion for your shell.
"""
SHARED = ("as_json", "quiet", "verbose")
TYPES = {int: "integer", float: "number", bool: "", str: "text", Path: "path"}


def reference() -> str:
    """The page, as Markdown."""
    from ldpruner.cli.app import COMMANDS

    lines = [HEADER, *_contents(COMMANDS)]
    for _, name, function in COMMANDS:
        lines += _section(name, function)
    return "\n".join(lines).rstrip() + "\n"


def _contents(commands: Sequence[tuple[str, str, Callable[..., Any]]]) -> Iterator[str]:
    yield "| | command | |"
    yield "|---|---|---|"
    before = None
    for panel, name, function in commands:
        summary = inspect.cleandoc(function.__doc__ or "").partition("\n")[0]
        yield f"| {panel if panel != before else ''} | [`{name}`](#{name}) | {summary} |"
        before = panel
    yield ""


def _section(name: str, function: Callable[..., Any]) -> Iterator[str]:
    parameters = inspect.signature(function).parameters.values()
    usage = [_argument(parameter) for parameter in parameters if isinstance(_info(parameter), ArgumentInfo)]
    yield f"## {name}\n"
    yield f"`{' '.join(['ldpruner', name, *usage])}`\n"
    text = inspect.cleandoc(function.__doc__ or "")
    yield re.sub(r"^Example: (.*)$", r"```\n\1\n```", text, flags=re.MULTILINE) + "\n"
    yield "| option | value | |"
    yield "|---|---|---|"
    for parameter in parameters:
        if parameter.name not in SHARED and isinstance(_info(parameter), OptionInfo):
            yield _row(parameter)
    yield ""


def _info(parameter: inspect.Parameter) -> Any:
    return get_args(parameter.annotation)[1]


def _argument(parameter: inspect.Parameter) -> str:
    name = parameter.name.upper()
    return name if parameter.default is inspect.Parameter.empty else f"[{name}]"


def _row(parameter: inspect.Parameter) -> str:
    info, kind = _info(parameter), get_args(parameter.annotation)[0]
    names = [info.default] if isinstance(info.default, str) else []  # where typer keeps the first name
    names += info.param_decls or []
    names = names or [f"--{parameter.name.replace('_', '-')}"]
    value = (info.metavar or _value(kind)).lower().replace("|", "\\|")
    text = (info.help or "").replace("|", "\\|")
    if info.show_default and parameter.default not in (None, False, inspect.Parameter.empty):
        text += f" Default: {parameter.default}."
    if parameter.default is inspect.Parameter.empty:
        text += " Required."
    return f"| {', '.join(f'`{name}`' for name in names)} | {value} | {text} |"


def _value(kind: Any) -> str:
    """How the page names the values of a type."""
    if kind in TYPES:
        return TYPES[kind]
    inner = [part for part in get_args(kind) if part is not type(None)]
    return " ".join(_value(part) for part in inner)


if __name__ == "__main__":
    sys.stdout.write(reference())
