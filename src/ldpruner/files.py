"""Files that are written whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from ldpruner.errors import StorageError


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
