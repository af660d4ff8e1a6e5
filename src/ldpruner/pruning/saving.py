"""Saves a pipeline as an ordinary diffusers folder, and replaces only what ld-pruner itself has saved."""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from diffusers import DiffusionPipeline
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from ldpruner.errors import StorageError, one_line
from ldpruner.pipelines.index import INDEX
from ldpruner.pipelines.offload import without_offload
from ldpruner.pipelines.running import networks
from ldpruner.pruning.serialization import AUTO_MAP
from ldpruner.runtime import check_savable

MARKER = ".ldpruner.json"  # lists the files of a folder that ld-pruner wrote, with their digests
LOCK = ".writing"  # in a folder that is being written
FINDER = ".DS_Store"  # macOS writes it into every folder that somebody looks at
DIGESTED = 2**20  # bytes at the start, the middle and the end of a file


def save(pipeline: DiffusionPipeline, folder: Path | str) -> None:
    """Saves a pipeline as a diffusers folder, whole or not at all.

    A pruned denoiser's folder holds the code that loads it. `load` opens the folder, and so does
    `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` without ld-pruner. An earlier save is replaced;
    a folder with any file that ld-pruner did not write is refused.

    Raises:
        StorageError: the folder cannot be written, holds something else, or the pipeline could not be read again.
    """
    place = Path(folder).absolute()
    _check_networks(pipeline)
    try:
        with replacing_folder(place) as fresh:
            with without_offload(pipeline):
                pipeline.save_pretrained(fresh, safe_serialization=True)
            _complete_index(pipeline, fresh)
    except (RuntimeError, ValueError) as error:
        raise StorageError(f"cannot save the pipeline: {_reason(error)}") from error


@contextlib.contextmanager
def replacing_folder(place: Path | str) -> Iterator[Path]:
    """Yields a new folder, which takes the place of another at the end of the `with` block, whole or not at all.

    Raises:
        StorageError: the place cannot be written, or holds what ld-pruner did not write.
    """
    try:
        target = check_replaceable(place)
        target.parent.mkdir(parents=True, exist_ok=True)
        _clean(target)
        with _fresh_folder(target) as fresh:
            yield fresh
            _write_marker(fresh)
            check_replaceable(target)
            _replace_folder(target, fresh)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot write {place}: {one_line(error)}") from error


def _check_networks(pipeline: DiffusionPipeline) -> None:
    for name, network in networks(pipeline).items():
        try:
            check_savable(network)
        except ValueError as error:
            raise StorageError(f"cannot save {name}: {error}") from error


def _reason(error: Exception) -> str:
    if "share memory" in str(error):  # safetensors lists the names
        names = " and ".join(sorted(re.findall(r"'([^']+)'", str(error)))[:2])
        return f"{names} share their weights; give one of them a copy first"
    if "not serializable" in str(error):  # diffusers, of quantised weights
        return "it is quantised in a way that cannot be saved; save it before, and quantise after loading"
    return one_line(error)


def _complete_index(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Writes into the index where AutoModel finds the class of a pruned network."""
    path = folder / INDEX
    maps = [part.auto_map for part in pipeline.components.values() if hasattr(part, "auto_map")]
    if maps:
        index = {**json.loads(path.read_text(encoding="utf-8")), AUTO_MAP: maps[0]}
        path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


# The marker of what ld-pruner wrote


def check_replaceable(folder: Path | str) -> Path:
    """The absolute place of a folder that `save` may make or replace.

    Raises:
        StorageError: it is a link, or holds anything that ld-pruner did not write.
    """
    advice = "move it, or choose another folder"
    place = Path(folder).absolute()
    target = place.parent.resolve() / place.name  # a link at the place itself is not followed
    if target.is_symlink():
        raise StorageError(f"{target} is a link to {target.readlink()}; {advice}")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return target
    if not target.is_dir() or not (target / MARKER).is_file():
        raise StorageError(f"{target} was not saved by ld-pruner; {advice}")
    try:
        written = json.loads((target / MARKER).read_text(encoding="utf-8"))
        foreign = [name for name, path in _files(target) if written.get(name) != _digest(path)]
    except (OSError, ValueError, AttributeError) as error:
        raise StorageError(f"cannot read {target / MARKER}: {one_line(error)}; {advice}") from error
    if foreign:
        raise StorageError(
            f"{target} holds {len(foreign)} files that are not as ld-pruner wrote them: {foreign[0]}; {advice}"
        )
    return target


def _write_marker(folder: Path) -> None:
    written = {}
    for name, path in _files(folder):
        with path.open("rb+") as file:
            os.fsync(file.fileno())  # before the rename: a power cut shall not leave an empty file under the name
        written[name] = _digest(path)
    (folder / MARKER).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """All files and links under a folder but those of its own upkeep."""
    for path in sorted(folder.rglob("*")):
        if path.name not in (MARKER, LOCK, FINDER) and (path.is_symlink() or not path.is_dir()):
            yield path.relative_to(folder).as_posix(), path


def _digest(path: Path) -> str:
    """Tells a file from a changed one by its size and three parts of it, so that large weights take no time."""
    if path.is_symlink():
        return "link"
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in (0, size // 2, max(size - DIGESTED, 0)):
            file.seek(start)
            digest.update(file.read(DIGESTED))
    return digest.hexdigest()


# Folders that are whole or not there


@contextlib.contextmanager
def _fresh_folder(target: Path) -> Iterator[Path]:
    """A new folder beside a target that exists only inside the `with` block, and is locked meanwhile."""
    fresh = _beside(target)
    fresh.mkdir()
    lock = FileLock(fresh / LOCK)
    lock.acquire()
    try:
        yield fresh
    finally:
        lock.release()
        shutil.rmtree(fresh, ignore_errors=True)


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")


def _clean(target: Path) -> None:
    """Deletes what killed saves of the same target left, unless another process holds it."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{16}}\.partial")
    for path in target.parent.iterdir():
        if pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            with contextlib.suppress(Timeout), FileLock(path / LOCK, timeout=0):
                shutil.rmtree(path, ignore_errors=True)


def _replace_folder(target: Path, finished: Path) -> None:
    """Puts a finished folder in the place of another; the old one is deleted last."""
    (finished / LOCK).unlink()
    old = _beside(target)
    if target.exists():
        target.rename(old)
    try:
        finished.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
