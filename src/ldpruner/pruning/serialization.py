"""Opens pipelines of any kind: pruned or not, from a folder, the zoo or the Hub."""

import contextlib
import importlib.resources
import inspect
import json
import tempfile
from collections.abc import Callable, Container, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import torch
from diffusers import DiffusionPipeline, ModelMixin
from packaging.version import Version
from pydantic import TypeAdapter, ValidationError

from ldpruner.errors import LdPrunerError, PipelineNotFound, UnsafeFile, is_out_of_memory, one_line
from ldpruner.operators.discovery import Removal
from ldpruner.operators.patching import check_removals
from ldpruner.pipelines.exported import exported_components
from ldpruner.pipelines.index import INDEX, check_folders, index_components, pipeline_class, read_index
from ldpruner.pipelines.library_logs import without_chatter
from ldpruner.pipelines.meta import open_meta, special_class
from ldpruner.pipelines.running import networks
from ldpruner.pruning import classes
from ldpruner.runtime import HUB_OPTIONS, adapting_class
from ldpruner.stand_ins import REMOVED, remove_
from ldpruner.values import first_fault

AUTO_MAP = "auto_map"  # in an index: where AutoModel finds the class of a pruned network
LOAD_OPTIONS = (
    *(
        "dtype",
        "torch_dtype",
        "variant",
        "device_map",
        "max_memory",
        "offload_folder",
        "offload_state_dict",
        "low_cpu_mem_usage",
    ),
    *("quantization_config", "disable_mmap"),
)
LONGEST_NAME = 100  # in messages
ONLY_IN_CLONES = ("digits",)  # zoo models that are not in the package
DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"  # the old name warns
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
REMOVALS = TypeAdapter(tuple[Removal, ...])
CONFIGURATIONS = ["*.json", "*.txt", "*.model", "*/*.json", "*/*.txt", "*/*.model"]
IGNORED_FILES = [f"*{ending}" for ending in (*PICKLES, ".msgpack", ".onnx", ".onnx_data", ".h5")]


def load(
    model: Path | str,
    *,
    dtype: torch.dtype | Mapping[str, torch.dtype] | None = None,
    torch_dtype: torch.dtype | Mapping[str, torch.dtype] | None = None,
    trust_programs: bool = False,
    **options: Any,
) -> DiffusionPipeline:
    """Opens a pipeline: a folder (pruned, exported, or neither), `zoo:NAME`, or the id of a Hub repository.

    Nothing is unpickled, and no code of the folder runs.

    Args:
        model: where the pipeline is.
        dtype: precision of the weights, or a dictionary of components; None is float32.
        torch_dtype: the former name of `dtype`.
        trust_programs: open networks that torch.export wrote, although their files can run code.
        options: of `DiffusionPipeline.from_pretrained`, such as `variant` or `device_map`; or components that take the
            place of the folder's.

    Raises:
        PipelineNotFound: there is no pipeline, or it cannot be opened.
        UnsafeFile: weights are not safetensors.
        TypeError: there is no such option.
    """
    folder = find_folder(model, **{name: options.pop(name) for name in HUB_OPTIONS if name in options})
    _check_options(folder, options)
    check_folders(folder, options)
    options |= exported_components(folder, options, trusted=trust_programs)
    _check_configurations(folder, options)
    _check_weights(folder, options)
    precision = dtype if dtype is not None else torch_dtype
    with translate_errors(model), without_chatter(), _with_known_classes(folder) as plain:
        # DiffusionPipeline itself would ignore a component that the pipeline's class lists as optional
        pipeline = pipeline_class(folder).from_pretrained(
            plain,
            use_safetensors=True,
            trust_remote_code=False,
            **({} if precision is None else {DTYPE: precision}),
            **options,
        )
    assert isinstance(pipeline, DiffusionPipeline)
    pipeline.register_to_config(_name_or_path=str(folder))
    for part in networks(pipeline).values():
        network: Any = part
        if isinstance(part, ModelMixin) and REMOVED in network.config and not hasattr(network, "unpruned_class"):
            network.__class__ = adapting_class(network.__class__)
    return pipeline


def load_meta(model: Path | str) -> DiffusionPipeline:
    """Opens a pipeline with its networks on the meta device: only configuration files are read or downloaded.

    Raises:
        PipelineNotFound: there is no pipeline, or it cannot be opened.
    """
    folder = find_folder(model, configurations_only=True)
    _check_configurations(folder)
    with translate_errors(model):
        return open_meta(folder)


def find_folder(model: Path | str, *, configurations_only: bool = False, **hub: Any) -> Path:
    """The local folder of a model; a model of the Hub is downloaded, with the options `hub` of `snapshot_download`.

    Raises:
        PipelineNotFound: there is no such model.
    """
    name = str(model)
    with translate_errors(model):
        folder = _zoo_folder(name.removeprefix("zoo:")) if name.startswith("zoo:") else Path(name)
        if folder.is_dir():
            if not (folder / INDEX).is_file():
                raise PipelineNotFound(
                    f"{folder} is no pipeline: it has no {INDEX}; give the folder that save_pretrained wrote"
                )
            return folder
        if folder.exists() or name.count("/") != 1 or name.startswith((".", "/", "~", "zoo:")):
            raise PipelineNotFound(
                f"no pipeline at {shortened(name)}; give a folder, a Hub id such as owner/name, or zoo:satellite"
            )
        allowed = CONFIGURATIONS if configurations_only else None
        options = {"allow_patterns": allowed, "ignore_patterns": IGNORED_FILES, **hub}
        return Path(huggingface_hub.snapshot_download(name, **options))


def _zoo_folder(name: str) -> Path:
    """The folder of a zoo model: in the package, or in the repository beside it."""
    package = Path(str(importlib.resources.files("ldpruner"))) / "zoo"
    for folder in (package / name, package.parents[2] / "zoo" / name / "pipeline"):
        if (folder / INDEX).is_file():
            return folder
    if name in ONLY_IN_CLONES:
        raise PipelineNotFound(
            f"'zoo:{name}' is not in the package; in a clone, install with 'pip install -e .', or name the folder "
            f"zoo/{name}/pipeline"
        )
    names = sorted(path.parent.name for path in package.glob(f"*/{INDEX}"))
    raise PipelineNotFound(f"no model 'zoo:{name}'; the zoo has {', '.join((*names, *ONLY_IN_CLONES))}")


def _check_options(folder: Path, options: Mapping[str, Any]) -> None:
    """Refuses options that diffusers would ignore with a warning."""
    accepted = {*LOAD_OPTIONS, *inspect.signature(pipeline_class(folder).__init__).parameters} - {"self"}
    for name in options:
        if name not in accepted:
            nearest = get_close_matches(name, accepted, n=3, cutoff=0.5) or sorted(accepted)
            raise TypeError(f"load takes no option {name!r}; nearest: {', '.join(nearest)}")


def _check_configurations(folder: Path, replaced: Container[str] = ()) -> None:
    """Refuses damaged configurations of components, and removals that mean nothing."""
    for name, (library, class_name) in index_components(folder).items():
        if name in replaced:
            continue
        for path in (folder / name).glob("*config.json"):
            configuration = _read_configuration(path)
            pruned = special_class(library, class_name)
            if "removals" in configuration and pruned is not None:
                _check_removals(path, configuration["removals"], pruned.from_config, configuration)


def _read_configuration(path: Path) -> dict[str, Any]:
    try:
        configuration = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise PipelineNotFound(f"cannot read {path}: {one_line(error)}; get it again") from error
    if not isinstance(configuration, dict):
        raise PipelineNotFound(f"{path} holds no JSON object but {type(configuration).__name__}; get it again")
    return configuration


def _check_removals(path: Path, entries: Any, build: Callable[[Any], Any], configuration: Mapping[str, Any]) -> None:
    """Refuses removals that cannot be made, one after another, in the unpruned network."""
    try:
        removals = REMOVALS.validate_python(entries)
    except ValidationError as error:
        raise PipelineNotFound(f"the removals of {path} mean nothing: {first_fault(error)}; prune again") from error
    if len({removal.operator for removal in removals}) < len(removals):
        raise PipelineNotFound(f"{path} removes an operator twice; prune again")
    with translate_errors(path), torch.device("meta"):
        network = build({**configuration, "removals": []})
        for removal in removals:
            check_removals(network, [removal])
            remove_(network, [removal.model_dump()])


@contextlib.contextmanager
def _with_known_classes(folder: Path) -> Iterator[Path]:
    """The same folder with an index for which diffusers finds moved and pruned classes, and runs no code of it."""
    special = {
        name: [classes.__name__, f"{library}.{class_name}"]
        for name, (library, class_name) in index_components(folder).items()
        if special_class(library, class_name) is not None
    }
    index = {**read_index(folder), **special}
    if not index.pop(AUTO_MAP, None) and not special:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        plain = Path(temporary)
        (plain / INDEX).write_text(json.dumps(index), encoding="utf-8")
        for path in folder.iterdir():
            if path.name != INDEX:
                (plain / path.name).symlink_to(path.resolve())
        yield plain


def _check_weights(folder: Path, replaced: Container[str]) -> None:
    """Refuses files that are not what their names say before any library opens them."""
    for path in sorted(folder.glob("*/*")):
        if path.parent.name in replaced:
            continue
        if path.suffix == ".safetensors" and not path.is_file():
            raise UnsafeFile(f"{path} is no file; get it again")
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
    """Turns the errors of libraries that cannot open a model into one line.

    Raises:
        PipelineNotFound: for any other error than those of ld-pruner.
        MemoryError: memory ran out.
    """
    try:
        yield
    except (LdPrunerError, MemoryError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError(one_line(error)) from error
        raise PipelineNotFound(f"cannot open {shortened(model)}: {one_line(error)}") from error


def shortened(model: Path | str) -> str:
    """The name of a model for a message."""
    name = str(model)
    return repr(name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…")
