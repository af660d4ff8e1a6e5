"""The run folder's store: every finished sample, so that the same command carries on where it was stopped.

Each modification has a row with its scores and the distances of its samples, and one with its running moment. Each row
carries a checksum.
"""

import contextlib
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldpruner.errors import RunStoreError, StorageError
from ldpruner.files import locked
from ldpruner.scoring.estimates import Curve
from ldpruner.scoring.importance import Floats, Moments

APPLICATION_ID = 0x4C445052  # "LDPR": tells a run store from any other SQLite file
FORMAT = 6

_TABLES = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE curves (
    operator TEXT, modification TEXT, denoiser_calls INTEGER NOT NULL, scores TEXT NOT NULL,
    squared_errors BLOB NOT NULL, checksum INTEGER NOT NULL, PRIMARY KEY (operator, modification)
);
CREATE TABLE moments (
    operator TEXT, modification TEXT, mean BLOB NOT NULL, m2 BLOB NOT NULL,
    checksum INTEGER NOT NULL, PRIMARY KEY (operator, modification)
);
CREATE TABLE baseline (
    sample INTEGER PRIMARY KEY, denoiser_calls INTEGER NOT NULL, shape TEXT NOT NULL, latents BLOB NOT NULL,
    checksum INTEGER NOT NULL
);
CREATE TABLE failures (
    operator TEXT, modification TEXT, reason TEXT NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (operator, modification)
);
"""

Key = tuple[str, str]  # an operator and its modification


class RunStore:
    """What a run has finished, in SQLite. Without a folder it lives in memory.

    Args:
        folder: the run folder, made if need be.
        identity: what the results depend on. A store with another identity is refused. The store holds the lock of
            its folder. None opens a store for reading, whatever its identity.

    Raises:
        RunStoreError: the file is damaged, or belongs to another model or probe.
        RunFolderBusy: another process is writing into the folder.
        StorageError: the folder cannot be written.
    """

    def __init__(self, folder: Path | str | None, identity: Mapping[str, Any] | None = None) -> None:
        self.path = Path(folder) / "run.sqlite" if folder is not None else None
        with contextlib.ExitStack() as stack:
            if self.path is not None and identity is not None:
                stack.enter_context(locked(self.path.parent))
            with self._writing():
                address = ":memory:" if self.path is None else _address(self.path, reads_only=identity is None)
                self._database = sqlite3.connect(address, uri=True, isolation_level=None)
            stack.callback(self._database.close)
            is_new = self._check_format()
            if identity is not None:
                self._prepare(is_new=is_new)
                self._check_identity(json.loads(json.dumps(identity)))
            elif is_new:
                raise RunStoreError(f"{self.path} is empty; score again")
            self._resources = stack.pop_all()

    def __enter__(self) -> "RunStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file, so that another process may open it."""
        self._resources.close()

    def fact(self, name: str) -> Any:
        """A fact about the run; None if it is not known."""
        rows = self._rows("SELECT name, value, checksum FROM facts WHERE name = ?", name)
        with self._reading():
            return json.loads(rows[0][1]) if rows else None

    def set_fact(self, name: str, value: Any) -> None:
        """Writes a fact about the run."""
        with self._transaction():
            self._write("facts", name, json.dumps(value))

    def curves(self) -> dict[Key, Curve]:
        """The finished samples of each modification: the first ones of the probe."""
        rows = self._rows("SELECT * FROM curves")
        with self._reading():
            return {(operator, name): _curve(*values) for operator, name, *values, _ in rows}

    def moments(self, key: Key) -> Moments:
        """The running moment of a modification's finished samples."""
        where = "WHERE operator = ? AND modification = ?"
        moments = self._rows(f"SELECT * FROM moments {where}", *key)
        curves = self._rows(f"SELECT * FROM curves {where}", *key)
        with self._reading():
            (_, _, *data, _), (_, _, *values, _) = moments[0], curves[0]
            mean, m2 = (np.frombuffer(each, np.float32).astype(np.float64) for each in data)
            return Moments(mean, m2, _curve(*values).squared_errors)

    def record(self, key: Key, curve: Curve, moments: Moments) -> None:
        """Writes the finished samples of a modification over those that were there.

        Moments are rounded to single precision. So a later sample must be merged into what `moments` reads, not into
        what was written: then a resumed run comes to the same bits.
        """
        scores = json.dumps({name: list(by_count.items()) for name, by_count in curve.scores.items()})
        rounded = [_single(each).tobytes() for each in (moments.mean, moments.m2)]
        with self._transaction():
            self._write("curves", *key, curve.denoiser_calls, scores, curve.squared_errors.tobytes())
            self._write("moments", *key, *rounded)

    def baseline(self) -> dict[int, Floats]:
        """The baseline's latents by sample: modified ones are compared with them."""
        rows = self._rows("SELECT sample, denoiser_calls, shape, latents, checksum FROM baseline ORDER BY sample")
        with self._reading():
            return {sample: np.frombuffer(latents).reshape(json.loads(shape)) for sample, _, shape, latents, _ in rows}

    def record_baseline(self, samples: Mapping[int, Floats], denoiser_calls: int) -> None:
        """Writes latents of the original pipeline, all or none.

        Args:
            samples: the latents by sample.
            denoiser_calls: what each sample took.
        """
        with self._transaction():
            for sample, latents in samples.items():
                self._write("baseline", sample, denoiser_calls, json.dumps(latents.shape), latents.tobytes())

    def failures(self) -> dict[Key, str]:
        """Why modifications cannot be removed."""
        rows = self._rows("SELECT operator, modification, reason, checksum FROM failures")
        return {(operator, modification): reason for operator, modification, reason, _ in rows}

    def record_failure(self, key: Key, reason: str) -> None:
        """Writes that a modification makes the denoiser raise."""
        with self._transaction():
            self._write("failures", *key, reason)

    def denoiser_calls(self) -> int:
        """All denoiser calls behind the store, counted for each sample."""
        query = "SELECT (SELECT total(denoiser_calls) FROM curves) + (SELECT total(denoiser_calls) FROM baseline)"
        with self._reading():
            return int(self._database.execute(query).fetchone()[0])

    def _check_format(self) -> bool:
        """Whether the store is new; raises for what this version cannot read."""
        with self._reading():
            (application,) = self._database.execute("PRAGMA application_id").fetchone()
            (tables,) = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID and tables:
            raise RunStoreError(f"{self.path} is not a run store of ld-pruner; choose another run folder")
        if tables and version != FORMAT:
            raise RunStoreError(
                f"{self.path} has format {version}, this version of ld-pruner reads {FORMAT}; start a new run folder"
            )
        return not tables

    def _prepare(self, *, is_new: bool) -> None:
        with self._writing():
            self._database.execute("PRAGMA journal_mode = WAL")
            if is_new:
                marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT};"
                self._database.executescript(f"BEGIN; {marks} {_TABLES} COMMIT;")

    def _check_identity(self, identity: Mapping[str, Any]) -> None:
        stored = self.fact("identity")
        if stored is None:
            self.set_fact("identity", identity)
            return
        for name, value in identity.items():
            if stored.get(name) != value:
                there, here = _differing(stored.get(name), value)
                raise RunStoreError(
                    f"{self.path} belongs to another {name}: {there} there, {here} here; choose another run folder"
                )

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """All rows of a query whose last column is the checksum of the others."""
        with self._reading():
            rows = self._database.execute(query, values).fetchall()
        if any(_checksum(*row) != checksum for *row, checksum in rows):
            raise RunStoreError(f"{self.path} is damaged: a checksum is wrong; move it away to start again")
        return rows

    def _write(self, table: str, *values: Any) -> None:
        marks = ", ".join("?" * (len(values) + 1))
        self._database.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", (*values, _checksum(*values)))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._writing():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.rollback()
                raise
            self._database.execute("COMMIT")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Turns whatever a damaged file makes of SQLite's answers into one line."""
        try:
            yield
        except (sqlite3.Error, ValueError, TypeError, LookupError, OverflowError) as error:
            reason = " ".join(str(error).split())
            raise RunStoreError(f"{self.path} is damaged: {reason}; move it away to start again") from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns errors of the file system into one line."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise StorageError(f"cannot write {self.path}: {reason}; choose another run folder") from error
        except sqlite3.OperationalError as error:
            raise StorageError(
                f"cannot use {self.path}: {error}; what was finished is kept, free the disk and run again"
            ) from error
        except sqlite3.DatabaseError as error:
            raise RunStoreError(f"{self.path} is damaged: {error}; move it away to start again") from error


def _checksum(*values: Any) -> int:
    """CRC-32 of a row."""
    checksum = 0
    for value in values:
        checksum = zlib.crc32(value if isinstance(value, bytes) else repr(value).encode(), checksum)
    return checksum


def _curve(denoiser_calls: int, scores: str, squared_errors: bytes) -> Curve:
    by_metric = {name: dict(map(tuple, by_count)) for name, by_count in json.loads(scores).items()}
    return Curve(np.frombuffer(squared_errors), by_metric, denoiser_calls)


def _single(values: Floats) -> NDArray[np.float32]:
    """In single precision; what does not fit becomes infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _address(path: Path, *, reads_only: bool) -> str:
    """The URI of a store's file. A folder that cannot be written must hold all of it in that file."""
    if not reads_only:
        return path.absolute().as_uri()
    has_journal = path.with_name(f"{path.name}-wal").exists()
    is_writable = os.access(path.parent, os.W_OK, effective_ids=os.access in os.supports_effective_ids)
    is_frozen = not is_writable and not has_journal
    return f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if is_frozen else ''}"


def _differing(there: Any, here: Any) -> tuple[str, str]:
    """Both values; of mappings only what differs."""
    if isinstance(there, dict) and isinstance(here, dict):
        names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
        there, here = ({name: each.get(name) for name in names} for each in (there, here))
    return _short(there), _short(here)


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 100 else text[:97] + "..."
