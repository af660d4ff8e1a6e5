"""What reaches the terminal: text that is safe to print, tables with whole names, progress bars, log lines.

Everything that commands print goes through here. Names, prompts and paths come from outside: they are never read as
markup, and control characters in them are shown, not obeyed.
"""

import functools
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

    from ldpruner.progress import Long

Item = TypeVar("Item")

LIBRARIES = "diffusers|transformers|torch|huggingface_hub|accelerate|safetensors"


def escaped(text: object) -> str:
    """Text in which characters that steer a terminal are visible: ESC is `\\x1b`, a line break `\\n`."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in str(text)
    )


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
        widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
        is_wide = width is not None and sum(widths) + 2 * (len(widths) - 1) > width
        for row in rows:
            cells = [self._aligned(place, cell, widths[place]) for place, cell in enumerate(row)]
            if is_wide:
                yield row[0]
                yield ("    " + "  ".join(cells[1:])).rstrip()
            else:
                yield "  ".join(cells).rstrip()

    def _aligned(self, place: int, cell: str, width: int) -> str:
        blank = " " * (width - _width(cell))
        return blank + cell if self.columns[place].startswith(">") else cell + blank


def _width(text: str) -> int:
    """How many columns of a terminal a text takes."""
    from rich.cells import cell_len

    return cell_len(text)


@dataclass
class Terminal:
    """Standard output for answers, standard error for all else.

    Attributes:
        quiet: no bars, no log lines, no hints.
        verbose: what the libraries say, too.
    """

    quiet: bool = False
    verbose: bool = False
    _handlers: dict[str, logging.Handler] = field(default_factory=dict)

    def configure(self, *, quiet: bool, verbose: bool) -> None:
        """Sets how much is said, and attaches the log to standard error."""
        self.quiet, self.verbose = quiet, verbose
        self._detach()
        name, level = ("", logging.INFO) if verbose else ("ldpruner", logging.WARNING if quiet else logging.INFO)
        handler = self._handlers[name] = _LogLines(level)
        logger = logging.getLogger(name or None)
        logger.addHandler(handler)
        logger.setLevel(level)
        if not verbose:
            warnings.filterwarnings("ignore", module=rf"({LIBRARIES})(\.|$)")

    def _detach(self) -> None:
        for name, handler in self._handlers.items():
            logging.getLogger(name or None).removeHandler(handler)
        self._handlers.clear()

    def say(self, text: object, style: str = "", *, wrap: bool = True) -> None:
        """Prints a line of an answer; a terminal's width breaks it between words, unless it is to be copied."""
        console = _console()
        _print(console, text, style, wrap=wrap and console.is_terminal)

    def note(self, text: object, style: str = "") -> None:
        """Prints one line beside the answer, to standard error."""
        _print(_console(stderr=True), text, style)

    def show(self, table: Table) -> None:
        """Prints a table: in a terminal as wide as this is, in a pipe with each row on one line."""
        console = _console()
        if table.title:
            _print(console, table.title, wrap=console.is_terminal)
        lines = list(table.lines(console.width if console.is_terminal else None))
        height = len(lines) // (1 + len(table.rows))  # lines of each row
        for place, line in enumerate(lines):
            console.print(_text(line, "bold" if place < height else ""), soft_wrap=True)

    def json(self, value: Any) -> None:
        """Prints one JSON object."""
        sys.stdout.write(json.dumps(value) + "\n")

    def progress(self, work: "Long[Item]", description: str) -> Iterator[Item]:
        """The work's items, with a bar on standard error; the work's length may change on the way."""
        console = _console(stderr=True)
        if self.quiet:
            yield from work
        elif not console.is_terminal:
            self.note(f"{description} ...")
            yield from work
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


def _with_bar(work: "Long[Item]", description: str, console: "Console") -> Iterator[Item]:
    from rich import progress

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
def _console(*, stderr: bool = False) -> "Console":
    """The one console of a stream: a bar stays whole only if all lines beside it go through the same one."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def _text(text: str, style: str = "") -> Any:
    from rich.text import Text

    return Text(text, style)


def _print(console: "Console", text: object, style: str = "", *, wrap: bool = False) -> None:
    console.print(_text(escaped(text), style), soft_wrap=not wrap)
