"""The run folder's ledger: every finished evaluation, so that the same command carries on where it was stopped."""

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from ldpruner.errors import RunStoreError, StorageError
from ldpruner.scoring.blocks import Block
from ldpruner.scoring.importance import Floats, Moments

APPLICATION_ID = 0x4C445052  # "LDPR": tells a ledger from any other SQLite file
FORMAT = 5
BASELINE = ("", "")  # the key of the untouched pipeline

# of moments; the large ones last: what comes before them is read without them
_MOMENTS = "count, squared_errors, cosine_distances, pooled, mean, m2"
_COLUMNS = (
    "count INTEGER NOT NULL, squared_errors BLOB NOT NULL, cosine_distances BLOB NOT NULL, pooled BLOB NOT NULL, "
    "mean BLOB NOT NULL, m2 BLOB NOT NULL"
)
_TABLES = f"""
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE evaluations (
    operator TEXT, modification TEXT, start INTEGER, denoiser_calls INTEGER NOT NULL,
    {_COLUMNS},
    PRIMARY KEY (operator, modification, start, count)
);
CREATE TABLE stopped (
    operator TEXT, modification TEXT, step INTEGER, denoiser_calls INTEGER NOT NULL,
    {_COLUMNS},
    PRIMARY KEY (operator, modification)
);
CREATE TABLE looks (
    operator TEXT, modification TEXT, sample INTEGER, denoiser_calls REAL NOT NULL, effect REAL,
    PRIMARY KEY (operator, modification, sample)
);
CREATE TABLE untouched (start INTEGER PRIMARY KEY, shape TEXT NOT NULL, latents BLOB NOT NULL);
CREATE TABLE path (shape TEXT NOT NULL, latents BLOB NOT NULL);
CREATE TABLE failures (operator TEXT, modification TEXT, reason TEXT NOT NULL, PRIMARY KEY (operator, modification));
"""

Key = tuple[str, str]


class RunStore:
    """What a run has finished, in SQLite. Without a folder it lives in memory.

    Args:
        folder: the run folder, made if need be.
        identity: what the results depend on; a ledger with another identity is refused, and no other process may
            open it with one until this is closed. None reads any.

    Raises:
        RunStoreError: the file is corrupt, is the ledger of another model or probe, or another process's.
        StorageError: the folder cannot be written.
    """

    def __init__(self, folder: Path | str | None, identity: Mapping[str, Any] | None = None) -> None:
        self.path = Path(folder) / "run.sqlite" if folder is not None else None
        with _told(self.path):
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.path) if self.path is not None and identity is not None else None
            self._database = sqlite3.connect(self.path or ":memory:", isolation_level=None)
        try:
            with _told(self.path):
                self._prepare()
            if identity is not None:
                self._check_identity(json.loads(json.dumps(identity)))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "RunStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; another process may open it."""
        self._database.close()
        if self._lock is not None:
            self._lock.release()

    def _prepare(self) -> None:
        (application,) = self._database.execute("PRAGMA application_id").fetchone()
        (tables,) = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != APPLICATION_ID and tables:
            raise RunStoreError(f"{self.path} is not a ledger of ld-pruner; choose another run folder")
        self._database.execute("PRAGMA journal_mode = WAL")
        if not tables:
            self._database.executescript(
                f"BEGIN; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT}; {_TABLES} COMMIT;"
            )
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version != FORMAT:
            raise RunStoreError(
                f"{self.path} has ledger format {version}, this version reads {FORMAT}; start a new run folder"
            )

    def _check_identity(self, identity: Mapping[str, Any]) -> None:
        known = self.fact("identity")
        if known is None:
            self.set_fact("identity", identity)
            return
        for name, value in identity.items():
            if known.get(name) != value:
                there, here = _differing(known.get(name), value)
                raise RunStoreError(
                    f"{self.path} belongs to another {name}: {there} there, {here} here; choose another run folder"
                )

    def fact(self, name: str) -> Any:
        """A fact about the run, None if it is not known."""
        row = self._execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else None

    def set_fact(self, name: str, value: Any) -> None:
        """Writes down a fact about the run."""
        self._execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def finished(self, key: Key) -> dict[Block, Moments]:
        """The finished blocks of a modification."""
        query = f"SELECT start, {_MOMENTS} FROM evaluations WHERE operator = ? AND modification = ? ORDER BY start"
        return {Block(start, start + row[0]): _moments(*row) for start, *row in self._execute(query, key)}

    def finished_blocks(self) -> dict[Key, dict[Block, bool]]:
        """Of all finished blocks whether their latents are numbers."""
        found: dict[Key, dict[Block, bool]] = {}
        query = "SELECT operator, modification, start, count, squared_errors FROM evaluations"
        for operator, modification, start, count, errors in self._execute(query):
            is_finite = bool(np.isfinite(np.frombuffer(errors)).all())
            found.setdefault((operator, modification), {})[Block(start, start + count)] = is_finite
        return found

    def stopped(self, key: Key) -> tuple[int, Moments] | None:
        """After which step the drawing of a modification was stopped, and the moments of the latents then."""
        query = f"SELECT step, {_MOMENTS} FROM stopped WHERE operator = ? AND modification = ?"
        row = self._execute(query, key).fetchone()
        return (row[0], _moments(*row[1:])) if row else None

    def record(
        self,
        key: Key,
        blocks: Mapping[Block, Moments],
        denoiser_calls: int,
        latents: Mapping[Block, Floats] | None = None,
        path: Floats | None = None,
    ) -> None:
        """Writes down finished blocks, all or none.

        Args:
            key: the operator and its modification.
            blocks: the moments of each block.
            denoiser_calls: what each sample took.
            latents: the blocks' latents, which are kept of the untouched pipeline: modified ones are compared with
                them sample by sample.
            path: the untouched latents after each step, of the first samples.
        """
        rows = [(*key, block.start, denoiser_calls, *_stored(one)) for block, one in blocks.items()]
        kept = [(block.start, json.dumps(one.shape), one.tobytes()) for block, one in (latents or {}).items()]
        with _told(self.path), self._transaction():
            self._database.executemany("INSERT OR REPLACE INTO evaluations VALUES (?,?,?,?,?,?,?,?,?,?)", rows)
            self._database.executemany("INSERT OR REPLACE INTO untouched VALUES (?,?,?)", kept)
            if path is not None:
                self._database.execute("DELETE FROM path")
                self._database.execute("INSERT INTO path VALUES (?,?)", (json.dumps(path.shape), path.tobytes()))

    def record_stopped(self, key: Key, step: int, moments: Moments, denoiser_calls: int) -> None:
        """Writes down that the drawing of a modification was stopped after a step, and where the latents were."""
        row = (*key, step, denoiser_calls, *_stored(moments))
        self._execute("INSERT OR REPLACE INTO stopped VALUES (?,?,?,?,?,?,?,?,?,?)", row)

    def record_looks(self, sample: int, effects: Mapping[Key, float], denoiser_calls: int) -> None:
        """Writes down what was seen of modifications on a sample, all or none, and the calls that all took."""
        rows = [(*key, sample, denoiser_calls / len(effects), effect) for key, effect in effects.items()]
        with _told(self.path), self._transaction():
            self._database.executemany("INSERT OR REPLACE INTO looks VALUES (?,?,?,?,?)", rows)

    def looks(self) -> dict[Key, dict[int, float]]:
        """What was seen of modifications by sample; NaN of what does not fit."""
        found: dict[Key, dict[int, float]] = {}
        for *key, sample, effect in self._execute("SELECT operator, modification, sample, effect FROM looks"):
            found.setdefault((key[0], key[1]), {})[sample] = np.nan if effect is None else effect
        return found

    def untouched_path(self) -> Floats | None:
        """[steps, samples, ...] the untouched latents of the first samples after each step."""
        row = self._execute("SELECT shape, latents FROM path").fetchone()
        return np.frombuffer(row[1]).reshape(json.loads(row[0])) if row else None

    def baseline(self) -> dict[Block, Floats]:
        """The untouched latents by block."""
        rows = self._execute("SELECT start, shape, latents FROM untouched ORDER BY start")
        read = {start: np.frombuffer(data).reshape(json.loads(shape)) for start, shape, data in rows}
        return {Block(start, start + len(one)): one for start, one in read.items()}

    def record_failure(self, key: Key, reason: str) -> None:
        """Writes down that a modification makes the denoiser raise."""
        self._execute("INSERT OR REPLACE INTO failures VALUES (?, ?, ?)", (*key, reason))

    def failures(self) -> dict[Key, str]:
        """Why modifications cannot be removed."""
        rows = self._execute("SELECT operator, modification, reason FROM failures")
        return {(operator, modification): reason for operator, modification, reason in rows}

    def denoiser_calls(self) -> int:
        """All denoiser calls that are in the ledger, counted for each sample."""
        tables = {
            "evaluations": "denoiser_calls * count",
            "stopped": "denoiser_calls * count",
            "looks": "denoiser_calls",
        }
        sums = (f"SELECT coalesce(sum({calls}), 0) FROM {table}" for table, calls in tables.items())
        return sum(round(self._execute(one).fetchone()[0]) for one in sums)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.rollback()
            raise
        self._database.execute("COMMIT")

    def _execute(self, query: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        with _told(self.path):
            return self._database.execute(query, values)


def _locked(path: Path) -> FileLock:
    """Held by the one process that may write; the system frees it when that process ends, however it ends."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunStoreError(f"another process is writing {path}; wait for it or choose another run folder") from error
    return lock


def _stored(one: Moments) -> tuple[int | bytes, ...]:
    arrays = (one.squared_errors, one.cosine_distances, one.pooled, one.mean, one.m2)
    return (one.count, *(array.tobytes() for array in arrays))


def _moments(count: int, *stored: bytes) -> Moments:
    errors, cosines, pooled, mean, m2 = map(np.frombuffer, stored)
    return Moments(count, mean, m2, errors, cosines, pooled.reshape(count, -1))


def _differing(there: Any, here: Any) -> tuple[str, str]:
    """Both values, of mappings only what differs."""
    if isinstance(there, dict) and isinstance(here, dict):
        names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
        there, here = ({name: one.get(name) for name in names} for one in (there, here))
    return _short(there), _short(here)


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 100 else text[:97] + "..."


@contextlib.contextmanager
def _told(path: Path | None) -> Iterator[None]:
    """Turns errors of the file system and of SQLite into one line."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}; choose another run folder") from error
    except sqlite3.OperationalError as error:
        raise StorageError(
            f"cannot use {path}: {error}; what was finished is kept, free the disk and run again"
        ) from error
    except sqlite3.DatabaseError as error:
        raise RunStoreError(f"{path} is corrupt: {error}; move it away to start again") from error
