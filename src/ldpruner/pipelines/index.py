"""The model_index.json of a pipeline folder, read as diffusers reads it."""

import inspect
import json
from collections.abc import Container
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline

from ldpruner.errors import PipelineNotFound, one_line
from ldpruner.pipelines.library_logs import without_chatter

INDEX = "model_index.json"


def read_index(folder: Path) -> dict[str, Any]:
    """Reads the model_index.json of a pipeline folder.

    Raises:
        PipelineNotFound: the file is not JSON, or names no pipeline class.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PipelineNotFound(f"{folder / INDEX} is not JSON: {one_line(error)}") from error
    if not isinstance(index, dict) or "_class_name" not in index:
        raise PipelineNotFound(f"{folder / INDEX} names no pipeline class")
    return index


def pipeline_class(folder: Path) -> Any:
    """The class of diffusers that a folder's model_index.json names.

    Raises:
        PipelineNotFound: diffusers has no such pipeline, or it needs a package that is not installed.
    """
    name = read_index(folder)["_class_name"]
    problem = f"{folder / INDEX} names pipeline class {name!r}"
    if not isinstance(name, str):
        raise PipelineNotFound(f"{problem}, which is code of its folder and is not run; name a class of diffusers")
    with without_chatter():  # of the libraries that this imports
        build = getattr(diffusers, name, None)
    if type(build).__name__ == "DummyObject":
        packages = ", ".join(vars(build)["_backends"])
        raise PipelineNotFound(f"{problem}, which needs {packages}; install what is missing of them")
    if build is None:
        raise PipelineNotFound(f"{problem}, unknown to diffusers {diffusers.__version__}")
    if build is DiffusionPipeline or not (inspect.isclass(build) and issubclass(build, DiffusionPipeline)):
        raise PipelineNotFound(f"{problem}, which cannot be run; name the class of the pipeline")
    return build


def index_components(folder: Path) -> dict[str, tuple[str, str]]:
    """The library and the class name of each component that the pipeline has.

    As in diffusers, a component is an argument of the constructor without a default, or one that the class lists as
    optional; all else in the file are settings, lists of two included. `[null, null]` is a component that is left out.

    Raises:
        PipelineNotFound: an entry is no component.
    """
    build, index = pipeline_class(folder), read_index(folder)
    parameters = inspect.signature(build.__init__).parameters
    components: dict[str, tuple[str, str]] = {}
    for name, parameter in parameters.items():
        has_default = parameter.default is not parameter.empty
        if name not in index or (has_default and name not in build._optional_components):
            continue
        entry = index[name]
        is_pair = isinstance(entry, list) and len(entry) == 2
        if not is_pair or not all(part is None or isinstance(part, str) for part in entry):
            problem = f"{folder / INDEX}: {name} is {json.dumps(entry)}"
            raise PipelineNotFound(f"{problem}; write [library, class], or [null, null] to leave it out")
        if None not in entry:
            components[name] = entry[0], entry[1]
    return components


def check_folders(folder: Path, replaced: Container[str] = ()) -> None:
    """Checks that each component has a folder; diffusers would look for its files beside the index, then on the Hub.

    Args:
        folder: of the pipeline.
        replaced: components that need none.

    Raises:
        PipelineNotFound: a folder is missing.
    """
    if any(folder.glob("*config.json")):  # of a component that lies beside the index
        return
    for name, (_, class_name) in index_components(folder).items():
        if name not in replaced and not (folder / name).is_dir():
            raise PipelineNotFound(
                f"{folder / name} is missing: {INDEX} lists the component {name} ({class_name}); get the folder again"
            )
