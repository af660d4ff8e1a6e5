"""Saving a pruned pipeline as an ordinary diffusers folder, and opening pipelines of any kind again."""

import contextlib
import importlib.resources
import inspect
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import torch
from diffusers import DiffusionPipeline
from packaging.version import Version
from safetensors import SafetensorError

from ldpruner.errors import LdPrunerError, PipelineNotFound, StorageError, UnsafeFile, one_line
from ldpruner.pipelines.meta import moved_class, open_meta
from ldpruner.runtime import pruned_class

INDEX = "model_index.json"
DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"  # the old name warns
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
CONFIGURATIONS = ["*.json", "*.txt", "*.model", "*/*.json", "*/*.txt", "*/*.model"]


def save(pipeline: DiffusionPipeline, folder: Path | str) -> None:
    """Saves a pipeline as a diffusers folder, whole or not at all.

    A pruned denoiser's folder carries the code that loads it: it opens with
    `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` without ld-pruner, and with `load`.

    Raises:
        StorageError: the folder cannot be written, or holds something else.
    """
    target = Path(folder).resolve()
    if target.exists() and not (target / INDEX).exists() and not (target.is_dir() and not any(target.iterdir())):
        raise StorageError(f"{target} exists and holds no pipeline; choose another folder")
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        pipeline.save_pretrained(partial, safe_serialization=True)
        _swap_in(partial, target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StorageError(f"cannot write {target}: {one_line(error)}") from error


def _swap_in(partial: Path, target: Path) -> None:
    """Puts a finished folder in its place; what was there is deleted last."""
    earlier = target.with_name(f".{target.name}.earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    if target.exists():
        target.rename(earlier)
    partial.rename(target)
    shutil.rmtree(earlier, ignore_errors=True)


def load(model: Path | str, *, torch_dtype: torch.dtype | None = None) -> DiffusionPipeline:
    """Opens a pipeline: a folder (pruned or not), `zoo:NAME`, or the id of a Hub repository.

    Nothing is unpickled, and no code of the folder runs.

    Raises:
        PipelineNotFound: there is no pipeline.
        UnsafeFile: weights are not safetensors.
    """
    folder = find_folder(model)
    _check_weights(folder)
    with _told(model):
        parts = {
            name: pruned_class(getattr(diffusers, class_name.removeprefix("Pruned"))).from_pretrained(
                folder / name, torch_dtype=torch_dtype
            )
            for name, class_name in _pruned_components(folder).items()
        }
        parts |= {name: part.from_pretrained(folder / name) for name, part in _moved_components(folder).items()}
        with _opened_as_plain(folder, parts) as plain:
            precision = {DTYPE: torch_dtype} if torch_dtype is not None else {}
            pipeline = DiffusionPipeline.from_pretrained(
                plain, use_safetensors=True, trust_remote_code=False, **precision, **parts
            )
    assert isinstance(pipeline, DiffusionPipeline)
    return pipeline


def load_meta(model: Path | str) -> DiffusionPipeline:
    """Opens a pipeline with its networks on the meta device: only configuration files are read or downloaded.

    Raises:
        PipelineNotFound: there is no pipeline.
    """
    folder = find_folder(model, configurations_only=True)
    with _told(model):
        return open_meta(folder)


def find_folder(model: Path | str, *, configurations_only: bool = False) -> Path:
    """The local folder of a model, downloaded from the Hub if need be.

    Raises:
        PipelineNotFound: there is none.
    """
    name = str(model)
    folder = _zoo_folder(name.removeprefix("zoo:")) if name.startswith("zoo:") else Path(name)
    if folder.is_dir():
        if not (folder / INDEX).is_file():
            raise PipelineNotFound(
                f"{folder} is no pipeline: it has no {INDEX}; give the folder that save_pretrained wrote"
            )
        return folder
    if folder.exists() or name.count("/") != 1 or name.startswith((".", "/", "~", "zoo:")):
        raise PipelineNotFound(
            f"no pipeline at {name!r}; give a folder, a Hub id such as owner/name, or zoo:satellite"
        )
    with _told(model):
        allowed = CONFIGURATIONS if configurations_only else None
        ignored = [f"*{ending}" for ending in (*PICKLES, ".msgpack", ".onnx", ".onnx_data", ".h5")]
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=allowed, ignore_patterns=ignored))


def _zoo_folder(name: str) -> Path:
    """A model of the zoo: in the package, or in the repository beside it."""
    package = Path(str(importlib.resources.files("ldpruner"))) / "zoo"
    places = [package / name, package.parents[2] / "zoo" / name / "pipeline"]
    found = next((place for place in places if (place / INDEX).is_file()), None)
    if found is None:
        known = sorted(path.parent.name for path in package.glob(f"*/{INDEX}"))
        raise PipelineNotFound(f"no model 'zoo:{name}'; the zoo has {', '.join(known) or 'none'}")
    return found


def _pruned_components(folder: Path) -> dict[str, str]:
    """The components of a folder that are pruned, with the names of their classes."""
    index = _read_index(folder)
    pipeline_class = getattr(diffusers, str(index["_class_name"]), None)
    if pipeline_class is None:
        raise PipelineNotFound(f"{folder / INDEX} names pipeline class {index['_class_name']!r}, unknown to diffusers")
    # Only what the pipeline takes: a component of another name would become an option of from_pretrained.
    known = inspect.signature(pipeline_class.__init__).parameters
    entries = [(name, entry) for name, entry in index.items() if name in known and isinstance(entry, list)]
    return {name: str(entry[1]) for name, entry in entries if str(entry[0]).startswith("pruned")}


def _moved_components(folder: Path) -> dict[str, Any]:
    """The classes of components that diffusers looks for in the wrong place."""
    entries = {name: entry for name, entry in _read_index(folder).items() if isinstance(entry, list)}
    found = {name: moved_class(str(library), str(part)) for name, (library, part) in entries.items()}
    return {name: part for name, part in found.items() if part is not None}


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except ValueError as error:
        raise PipelineNotFound(f"{folder / INDEX} is not JSON: {one_line(error)}") from error
    if not isinstance(index, dict) or "_class_name" not in index:
        raise PipelineNotFound(f"{folder / INDEX} names no pipeline class")
    return index


@contextlib.contextmanager
def _opened_as_plain(folder: Path, parts: dict[str, Any]) -> Iterator[Path]:
    """A folder without the parts that are open already: of pruned ones diffusers would run code."""
    if not parts:
        yield folder
        return
    index = _read_index(folder)
    for name in parts:
        del index[name]
    with tempfile.TemporaryDirectory() as temporary:
        plain = Path(temporary)
        (plain / INDEX).write_text(json.dumps(index), encoding="utf-8")
        for path in folder.iterdir():
            if path.is_dir():
                (plain / path.name).symlink_to(path.resolve())
        yield plain


def _check_weights(folder: Path) -> None:
    """Refuses files that are not what they seem before any library opens them."""
    for path in sorted(folder.glob("*/*")):
        if path.suffix == ".safetensors":
            _check_safetensors(path)
        elif path.suffix in PICKLES and not list(path.parent.glob("*.safetensors")):
            raise UnsafeFile(f"{path} would have to be unpickled; convert it to safetensors first")


def _check_safetensors(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(9)
    header = int.from_bytes(start[:8], "little")
    if len(start) < 9 or start[8:9] != b"{" or header > path.stat().st_size - 8:
        kinds = {b"PK": "a zip (perhaps a pickle of torch.save)", b"\x80": "a pickle"}
        kind = next(
            (kind for magic, kind in kinds.items() if start.startswith(magic)),
            "damaged, or no safetensors file",
        )
        raise UnsafeFile(f"{path} is {kind}; it is not opened, get the file again as safetensors")


@contextlib.contextmanager
def _told(model: Path | str) -> Iterator[None]:
    """Turns what the libraries raise on a folder that cannot be opened into one line."""
    try:
        yield
    except LdPrunerError:
        raise
    except Exception as error:
        raise PipelineNotFound(f"cannot open {str(model)!r}: {one_line(error)}") from error
