"""The command line: parse, build values, call the library, print."""

import logging
import sys
from typing import Any

import diffusers.utils.logging
import transformers.utils.logging
import typer

from ldpruner.cli import demo, inspect, prune, recipe, recover  # noqa: F401  (each adds its commands)
from ldpruner.cli.app import app, errors
from ldpruner.errors import LdPrunerError

__all__ = ["app", "main"]

# typer brings a click of its own and exports of its errors only this one.
ClickError: Any = typer.BadParameter.__mro__[2]


def main() -> int:
    """Runs the command line; the exit code. A user's mistake is one red line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    _quiet_libraries()
    try:
        app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        errors.print("stopped; the same command again carries on", style="yellow")
        return 130
    except ClickError as error:
        errors.print(f"error: {error.format_message()}", style="red", markup=False, soft_wrap=True)
        return 2
    except LdPrunerError as error:
        errors.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    return 0


def _quiet_libraries() -> None:
    logging.getLogger("httpx").setLevel(logging.WARNING)
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
