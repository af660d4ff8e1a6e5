"""Files that are written whole or not at all, and folders that one process at a time writes into."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ldpruner.errors import RunFolderBusy, StorageError


@contextlib.contextmanager
def locked(folder: Path | str) -> Iterator[None]:
    """Holds a run folder inside a `with` block: no other process writes into it. The folder is made if need be.

    The same thread may hold a folder several times. Of the processes of a launcher only the first one writes, so only
    that one holds the folder. The system frees the lock when a process ends, however it ends.

    Raises:
        RunFolderBusy: another process holds it.
        StorageError: the folder cannot be written.
    """
    path = Path(folder)
    if int(os.environ.get("RANK", "0")) > 0:  # set by launchers
        yield
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.resolve() / "run.lock", is_singleton=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunFolderBusy(f"another process is writing {path}; wait for it or choose another run folder") from error
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}; choose another run folder") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path in the same folder, and renames it to `path` at the end.

    A reader sees the old file or the new one, never a part; after an error or Ctrl-C the old one is left as it was.

    Raises:
        StorageError: the file cannot be written.
    """
    target = Path(path)
    partial = target.with_name(f".{target.stem}.{secrets.token_hex(4)}{target.suffix}")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())  # before the rename: a power cut shall not leave an empty file under the name
        partial.replace(target)
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error.strerror or error}; choose another folder") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_atomic(path: Path | str, content: str | bytes) -> None:
    """Writes a file whole or not at all; text is UTF-8.

    Raises:
        StorageError: the file cannot be written.
    """
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
