"""Prompts of a file: one on each line of a text, or a column of a table, beside one for their category."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ldpruner.errors import ProbeError, one_line, shown

# Of .csv, .tsv and .jsonl, in capitals or not: PartiPrompts has Prompt, DrawBench has Prompts.
PROMPT_COLUMNS = ("prompt", "prompts")
CATEGORY_COLUMNS = ("category", "categories")
UNCATEGORIZED = "uncategorized"


class Prompts(NamedTuple):
    """The prompts of a file, and the category of each; no categories where the file has none."""

    texts: tuple[str, ...]
    categories: tuple[str, ...] | None


def read_prompts(path: Path | str) -> Prompts:
    """Reads prompts from a table (`.csv`, `.tsv`, `.jsonl`), or from a text file with one on each line.

    Raises:
        ProbeError: the file cannot be read, or has no prompts.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if "\0" in text:
            raise ProbeError("the file holds NUL bytes; save it as UTF-8 text")
        reader = {".csv": _separated, ".tsv": _tabbed, ".jsonl": _objects}.get(path.suffix.lower())
        rows = (
            list(_columns(reader(text))) if reader is not None else [(line.strip(), "") for line in text.split("\n")]
        )
    except ProbeError as error:
        raise ProbeError(f"probe prompts={str(path)!r}: {error}") from error
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise ProbeError(
            f"probe prompts={str(path)!r}: {one_line(error)}; give a text file or a sequence of prompts"
        ) from error
    rows = [row for row in rows if row[0]]
    if not rows:
        raise ProbeError(f"probe prompts={str(path)!r}: the file holds no prompt; write one on each line")
    texts, categories = zip(*rows, strict=True)
    return Prompts(texts, tuple(name or UNCATEGORIZED for name in categories) if any(categories) else None)


Rows = Iterator[tuple[int, Mapping[str, Any]]]  # the number of the line, and values by column


def _columns(rows: Rows) -> Iterator[tuple[str, str]]:
    """The prompt and the category of each row."""
    for line, row in rows:
        columns = {str(name).strip().lower(): value for name, value in row.items()}
        prompt = next((columns[name] for name in PROMPT_COLUMNS if name in columns), None)
        category = next((columns[name] for name in CATEGORY_COLUMNS if name in columns), None) or ""
        if not isinstance(prompt, str):
            raise ProbeError(
                f"line {line} has {', '.join(map(repr, row))}, and no text as 'prompt'; name that column so"
            )
        if not isinstance(category, str):
            raise ProbeError(f"line {line}: the category {shown(category)} is no text; write it as one")
        yield prompt.strip(), category.strip()


def _separated(text: str) -> Rows:
    return _table(csv.DictReader(io.StringIO(text, newline="")), "put quotes around a prompt with commas")


def _tabbed(text: str) -> Rows:
    # Quotes are letters here: a prompt of PartiPrompts begins with a word in quotes.
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    return _table(reader, "a prompt holds no tabs")


def _table(reader: "csv.DictReader[str]", hint: str) -> Rows:
    for row in reader:
        if None in row:  # more fields than columns
            raise ProbeError(f"line {reader.line_num} has more fields than the first line; {hint}")
        yield reader.line_num, row


def _objects(text: str) -> Rows:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ProbeError(f'line {number} is {shown(row)}; write it as {{"prompt": ...}}')
            yield number, row
