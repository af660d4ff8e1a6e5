"""The reference of the command line, made from the commands: `python -m ldpruner.cli.reference > docs/cli.md`."""

import re
import sys

import typer
from typer.cli import get_docs_for_click

from ldpruner.cli.app import app

INTRODUCTION = """# Command line

This page is made from the commands: `python -m ldpruner.cli.reference > docs/cli.md`.

MODEL is a folder, a Hub id, or `zoo:NAME`. A mistake is one line and exit code 1 or 2. Ctrl-C is exit code
130, `kill` is 143; either leaves nothing half written. To resume, run the same command again.
"""


def reference() -> str:
    """The page, as Markdown."""
    group = typer.main.get_command(app)
    page = get_docs_for_click(obj=group, ctx=typer.Context(group), name="ldpruner", title="Command line")
    examples = re.sub(r"^Example: (.*)$", r"```console\n$ \1\n```", page, flags=re.MULTILINE)
    return INTRODUCTION + examples.partition("\n")[2].rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
