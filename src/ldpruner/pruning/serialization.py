"""Saves a pruned pipeline as an ordinary diffusers folder, and opens pipelines of any kind."""

import contextlib
import importlib.resources
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import torch
from diffusers import DiffusionPipeline
from packaging.version import Version
from safetensors import SafetensorError

from ldpruner.errors import LdPrunerError, PipelineNotFound, StorageError, UnsafeFile, one_line
from ldpruner.pipelines.index import INDEX, check_folders, index_components, read_index
from ldpruner.pipelines.library_logs import without_chatter
from ldpruner.pipelines.meta import open_meta, special_class

DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"  # the old name warns
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
CONFIGURATIONS = ["*.json", "*.txt", "*.model", "*/*.json", "*/*.txt", "*/*.model"]
IGNORED_FILES = [f"*{ending}" for ending in (*PICKLES, ".msgpack", ".onnx", ".onnx_data", ".h5")]


def save(pipeline: DiffusionPipeline, folder: Path | str) -> None:
    """Saves a pipeline as a diffusers folder, whole or not at all.

    A pruned denoiser's folder holds the code that loads it. `load` opens the folder, and so does
    `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` without ld-pruner.

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
        _replace_folder(target, partial)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StorageError(f"cannot write {target}: {one_line(error)}") from error


def _replace_folder(target: Path, finished: Path) -> None:
    """Puts a finished folder in the place of another; the old one is deleted last."""
    old = target.with_name(f".{target.name}.earlier")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    finished.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def load(model: Path | str, *, torch_dtype: torch.dtype | None = None) -> DiffusionPipeline:
    """Opens a pipeline: a folder (pruned or not), `zoo:NAME`, or the id of a Hub repository.

    Nothing is unpickled, and no code of the folder runs.

    Raises:
        PipelineNotFound: there is no pipeline, or it cannot be opened.
        UnsafeFile: weights are not safetensors.
    """
    folder = find_folder(model)
    check_folders(folder)
    _check_weights(folder)
    with translate_errors(model), without_chatter():
        components = _load_special(folder, torch_dtype)
        with _folder_without(components, folder) as plain:
            dtype = {DTYPE: torch_dtype} if torch_dtype is not None else {}
            pipeline = DiffusionPipeline.from_pretrained(
                plain, use_safetensors=True, trust_remote_code=False, **dtype, **components
            )
    assert isinstance(pipeline, DiffusionPipeline)
    return pipeline


def load_meta(model: Path | str) -> DiffusionPipeline:
    """Opens a pipeline with its networks on the meta device: only configuration files are read or downloaded.

    Raises:
        PipelineNotFound: there is no pipeline, or it cannot be opened.
    """
    folder = find_folder(model, configurations_only=True)
    with translate_errors(model):
        return open_meta(folder)


def find_folder(model: Path | str, *, configurations_only: bool = False) -> Path:
    """The local folder of a model; a model of the Hub is downloaded.

    Raises:
        PipelineNotFound: there is no such model.
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
    with translate_errors(model):
        allowed = CONFIGURATIONS if configurations_only else None
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=allowed, ignore_patterns=IGNORED_FILES))


def _zoo_folder(name: str) -> Path:
    """The folder of a zoo model: in the package, or in the repository beside it."""
    package = Path(str(importlib.resources.files("ldpruner"))) / "zoo"
    for folder in (package / name, package.parents[2] / "zoo" / name / "pipeline"):
        if (folder / INDEX).is_file():
            return folder
    names = sorted(path.parent.name for path in package.glob(f"*/{INDEX}"))
    raise PipelineNotFound(f"no model 'zoo:{name}'; the zoo has {', '.join(names) or 'none'}")


def _load_special(folder: Path, torch_dtype: torch.dtype | None) -> dict[str, Any]:
    """The components that diffusers cannot load itself: pruned networks, and classes that it has moved."""
    components: dict[str, Any] = {}
    for name, (library, class_name) in index_components(folder).items():
        component_class = special_class(str(library), str(class_name))
        if component_class is not None:
            dtype = {"torch_dtype": torch_dtype} if issubclass(component_class, torch.nn.Module) else {}
            components[name] = component_class.from_pretrained(folder / name, **dtype)
    return components


@contextlib.contextmanager
def _folder_without(components: Iterable[str], folder: Path) -> Iterator[Path]:
    """A pipeline folder without some components that are open already: diffusers would run the code of pruned ones."""
    if not components:
        yield folder
        return
    index = {name: entry for name, entry in read_index(folder).items() if name not in components}
    with tempfile.TemporaryDirectory() as temporary:
        plain = Path(temporary)
        (plain / INDEX).write_text(json.dumps(index), encoding="utf-8")
        for path in folder.iterdir():
            if path.is_dir():
                (plain / path.name).symlink_to(path.resolve())
        yield plain


def _check_weights(folder: Path) -> None:
    """Refuses files that are not what their names say before any library opens them."""
    for path in sorted(folder.glob("*/*")):
        if path.suffix == ".safetensors":
            _check_safetensors(path)
        elif path.suffix in PICKLES and not list(path.parent.glob("*.safetensors")):
            raise UnsafeFile(f"{path} would have to be unpickled; convert it to safetensors first")


def _check_safetensors(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(9)
    header_size = int.from_bytes(start[:8], "little")
    if len(start) < 9 or start[8:9] != b"{" or header_size > path.stat().st_size - 8:
        formats = {b"PK": "a zip (perhaps a pickle of torch.save)", b"\x80": "a pickle"}
        names = (name for magic, name in formats.items() if start.startswith(magic))
        name = next(names, "damaged, or no safetensors file")
        raise UnsafeFile(f"{path} is {name}; it is not opened, get the file again as safetensors")


@contextlib.contextmanager
def translate_errors(model: Path | str) -> Iterator[None]:
    """Turns the errors of libraries that cannot open a model into one line."""
    try:
        yield
    except LdPrunerError:
        raise
    except Exception as error:
        raise PipelineNotFound(f"cannot open {str(model)!r}: {one_line(error)}") from error
