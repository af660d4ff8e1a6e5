"""What reaches the terminal: text that is safe to print, tables with whole names, progress bars, log lines.

Everything that commands print goes through here. Names, prompts and paths come from outside: they are never read as
markup, and control characters in them are shown, not obeyed.
"""

import functools
import json
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from rich import progress
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from ldpruner.progress import Long

Item = TypeVar("Item")

MAX_ERROR = 1200  # characters
SECONDS_BETWEEN_LINES = 30.0  # of progress, where there is no terminal
LIBRARIES = "diffusers|transformers|torch|huggingface_hub|accelerate|safetensors"


def escaped(text: object) -> str:
    """Text in which characters that steer a terminal are visible: ESC is `\\x1b`, a line break `\\n`."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in str(text)
    )


def shortened(text: str, limit: int = MAX_ERROR) -> str:
    """Text with its middle left out if it is too long to be read: its beginning and its end say what to do."""
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]} … {text[-half:]}"


@dataclass(frozen=True)
class Table:
    """Rows of text under a header.

    Attributes:
        columns: their titles; `>` in front aligns a column to the right.
        rows: a text for each column.
        title: a line above.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""

    def lines(self, width: int | None = None) -> Iterator[str]:
        """The header and the rows, as lines.

        Names stay whole: where a row is too wide, its first column gets a line of its own. None is any width.
        """
        rows = [[escaped(cell) for cell in row] for row in ([title.lstrip(">") for title in self.columns], *self.rows)]
        widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
        is_wide = width is not None and sum(widths) + 2 * (len(widths) - 1) > width
        for row in rows:
            cells = [self._aligned(place, cell, widths[place]) for place, cell in enumerate(row)]
            if is_wide:
                yield row[0]
                yield ("    " + "  ".join(cells[1:])).rstrip()
            else:
                yield "  ".join(cells).rstrip()

    def _aligned(self, place: int, cell: str, width: int) -> str:
        blank = " " * (width - cell_len(cell))
        return blank + cell if self.columns[place].startswith(">") else cell + blank


class Terminal:
    """Standard output for answers, standard error for all else.

    Attributes:
        quiet: no bars, no log lines, no hints.
        verbose: also what the libraries say, and where errors come from.
    """

    quiet = False
    verbose = False

    def configure(self, *, quiet: bool, verbose: bool) -> None:
        """Sets how much is said, and attaches the log to standard error; `verbose` adds what the libraries say."""
        self.quiet, self.verbose = quiet, verbose
        everything, own = logging.getLogger(), logging.getLogger("ldpruner")
        for logger in (everything, own):
            logger.removeHandler(_LOG_LINES)
        logger, level = everything if verbose else own, logging.WARNING if quiet else logging.INFO
        _LOG_LINES.setLevel(level)
        logger.addHandler(_LOG_LINES)
        logger.setLevel(level)
        if not verbose:
            warnings.filterwarnings("ignore", module=rf"({LIBRARIES})(\.|$)")

    def say(self, text: object, style: str = "", *, wrap: bool = True) -> None:
        """Prints a line of an answer; a terminal's width breaks it between words, unless it is to be copied."""
        console = _console()
        console.print(Text(escaped(text), style), soft_wrap=not (wrap and console.is_terminal))

    def note(self, text: object, style: str = "") -> None:
        """Prints one line beside the answer, to standard error."""
        _console(stderr=True).print(Text(escaped(text), style), soft_wrap=True)

    def trace(self, error: BaseException) -> None:
        """Prints where an error was raised, to standard error."""
        for line in "".join(traceback.format_exception(error)).splitlines():
            self.note(line, "dim")

    def show(self, table: Table) -> None:
        """Prints a table: in a terminal as wide as this is, in a pipe with each row on one line."""
        console = _console()
        if table.title:
            self.say(table.title)
        lines = list(table.lines(console.width if console.is_terminal else None))
        height = len(lines) // (1 + len(table.rows))  # lines of each row
        for place, line in enumerate(lines):
            console.print(Text(line, "bold" if place < height else ""), soft_wrap=True)

    def json(self, value: Any) -> None:
        """Prints one JSON object."""
        sys.stdout.write(json.dumps(value) + "\n")

    def progress(self, work: Long[Item], description: str) -> Iterator[Item]:
        """The work's items, with a bar on standard error; the work's length may change on the way."""
        console = _console(stderr=True)
        if self.quiet:
            yield from work
        elif not console.is_terminal:
            yield from _with_lines(work, description)
        else:
            yield from _with_bar(work, escaped(description), console)


terminal = Terminal()


class _LogLines(logging.Handler):
    """Prints log records as lines that do not break a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            terminal.note(record.getMessage(), "dim" if record.levelno < logging.WARNING else "yellow")
        except Exception:  # noqa: BLE001  (a log line stops no run)
            self.handleError(record)


_LOG_LINES = _LogLines()


def _with_lines(work: Long[Item], description: str) -> Iterator[Item]:
    """A line at the beginning, and one now and then with the time that is left."""
    terminal.note(f"{description} ...")
    started = said = time.monotonic()
    for done, item in enumerate(work, start=1):
        yield item
        now = time.monotonic()
        if now - said >= SECONDS_BETWEEN_LINES and done < len(work):
            left = timedelta(seconds=round((now - started) / done * (len(work) - done)))
            terminal.note(f"{description}: {done:,} of {len(work):,}, about {left} left")
            said = now


def _with_bar(work: Long[Item], description: str, console: Console) -> Iterator[Item]:
    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=len(work))
        for item in work:
            yield item
            bar.update(task, advance=1, total=len(work))


@functools.cache
def _console(*, stderr: bool = False) -> Console:
    """The one console of a stream: a bar stays whole only if all lines beside it go through the same one."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)
