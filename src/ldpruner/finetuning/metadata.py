"""The captions and classes of a folder: rows of metadata.jsonl or metadata.csv, as in the Hub's imagefolder layout."""

import csv
import json
import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

from ldpruner.errors import DataError, one_line, shown

Row = Mapping[str, Any]
FILES = ("metadata.jsonl", "metadata.csv")
FILE_NAME = "file_name"  # the column that names the picture or the sound

logger = logging.getLogger(__name__)


def read_metadata(folder: Path, names: Collection[str]) -> dict[str, Row]:
    """The rows of a folder's metadata by the file that each names; empty if there is no metadata.

    Args:
        folder: of pictures or sounds.
        names: its files, relative to the folder.

    Raises:
        DataError: a row is no row, names no file or one twice, or all rows name files that are not there.
    """
    paths = [path for name in FILES if (path := folder / name).exists()]
    if not paths:
        return {}
    if len(paths) > 1:
        raise DataError(f"{folder} holds {' and '.join(FILES)}; keep one")
    rows: dict[str, Row] = {}
    for line, row in _rows(paths[0]):
        name = _file_name(row, f"{paths[0]} line {line}")
        if name in rows:
            raise DataError(f"{paths[0]} line {line}: {FILE_NAME}={shown(name)} comes twice; keep one")
        rows[name] = row
    missing = [name for name in rows if name not in names]
    if len(missing) == len(rows):
        example = f", such as {shown(missing[0])}" if missing else ""
        raise DataError(f"{paths[0]}: none of its {len(rows)} rows names a file of the folder{example}")
    if missing:
        logger.warning("%s: %d rows name files that are not there: %s", paths[0], len(missing), shown(missing))
    return rows


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    """The rows with the numbers of their lines."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            yield from _json_rows(path, lines) if path.suffix == ".jsonl" else _csv_rows(path, lines)
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {one_line(error)}") from error


def _json_rows(path: Path, lines: TextIO) -> Iterator[tuple[int, Row]]:
    for line, text in enumerate(lines, 1):
        if text.strip():
            row = json.loads(text, object_pairs_hook=_unique)
            if not isinstance(row, dict):
                raise DataError(f'{path} line {line}: {shown(row)} is no object; write {{"{FILE_NAME}": ...}}')
            yield line, row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"a name comes twice among {shown([name for name, _ in pairs])}")
    return row


def _csv_rows(path: Path, lines: TextIO) -> Iterator[tuple[int, Row]]:
    reader = csv.reader(lines, strict=True)
    header = next(reader, [])
    if len(set(header)) < len(header):
        raise DataError(f"{path} line 1: a column comes twice among {shown(header)}")
    for fields in reader:
        if fields and len(fields) != len(header):
            raise DataError(
                f"{path} line {reader.line_num}: {len(fields)} fields for {len(header)} columns; quote what has commas"
            )
        if fields:
            yield reader.line_num, dict(zip(header, fields, strict=True))


def _file_name(row: Row, place: str) -> str:
    """The file that a row names, relative to the folder."""
    name = row.get(FILE_NAME)
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        columns = ", ".join(map(str, row))
        raise DataError(f"{place}: {FILE_NAME}={shown(name)} names no file; the row has {columns or 'nothing'}")
    return PurePosixPath(name).as_posix()
