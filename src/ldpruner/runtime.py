"""The classes of pruned denoisers: how they are built, loaded and saved.

This file and those that it imports of ld-pruner are joined in the folder of every saved pruned pipeline, so that the
pipeline opens where ld-pruner is not installed. They must import nothing else of ld-pruner.
"""

import functools
import inspect
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from ldpruner.adapters import adapting_methods
from ldpruner.stand_ins import remove_

# Weights, or their index, as diffusers names them, and as a pruned network does: the unpruned class would find the
# former, and fill what is missing with random values. DiffusionPipeline downloads both.
PLAIN_NAME, PRUNED_NAME = "diffusion_pytorch_model.", "model."
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
SOURCE_FILE = Path(__file__)
CLASS_MARKER = "# The class of this folder"
JOINED_IMPORT = re.compile(r"^from ldpruner\.(\w+) import (?:\([^)]*\)|.*)\n", re.MULTILINE)


# Classes


@functools.cache
def adapting_class(base: Any) -> Any:
    """A class that passes for the diffusers model class `base`, and knows which of its modules are gone."""
    body = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "unpruned_class": base,
        "__reduce_ex__": reduce_ex,
        **adapting_methods(base),
    }
    return type(base.__name__, (base,), body)


@functools.cache
def pruned_class(base: Any) -> Any:
    """The class for pruned networks of a diffusers model class, where some modules have stand-ins.

    Its configuration is that of `base` plus the list `removals`. Loading replays them: build `base`, remove the
    operators again, then load the weights strictly.
    """

    name = f"Pruned{base.__name__}"
    module = name.lower()  # the file in the folder, which diffusers writes to model_index.json

    def build(self: Any, *args: Any, removals: Any = (), auto_map: Any = None, **kwargs: Any) -> None:
        base.__init__.__wrapped__(self, *args, **kwargs)
        remove_(self, removals)

    # diffusers takes the entries of a configuration from the signature.
    signature: Any = inspect.signature(base.__init__)
    auto_map = {"AutoModel": f"{module}.{name}"}  # where diffusers' AutoModel looks for the class
    entries = {"removals": (), "auto_map": auto_map}
    added = [inspect.Parameter(entry, inspect.Parameter.KEYWORD_ONLY, default=entries[entry]) for entry in entries]
    cast(Any, build).__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])
    body = {
        "__init__": register_to_config(build),
        "__module__": module,
        "__doc__": f"{base.__name__} with some operators removed.",
        "auto_map": auto_map,
        "from_config": classmethod(cast(Any, from_config)),
        "from_pretrained": classmethod(cast(Any, from_pretrained)),
        "save_pretrained": save_pretrained,
    }
    return type(name, (adapting_class(base),), body)


def from_config(cls: Any, config: Any = None, return_unused_kwargs: bool = False, **changes: Any) -> Any:
    """Builds a network without its weights' values; `changes` replace entries of the configuration.

    Raises:
        TypeError: neither the configuration nor diffusers knows an argument.
    """
    parameters = inspect.signature(cls.__init__).parameters
    unknown = sorted(set(changes) - set(parameters))
    if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        raise TypeError(f"{cls.__name__} takes no argument {', '.join(map(repr, unknown))}")
    return cast(Any, ConfigMixin.from_config).__func__(cls, config, return_unused_kwargs, **changes)


def from_pretrained(cls: Any, pretrained_model_name_or_path: str | Path, **options: Any) -> Any:
    """Loads a pruned network with the options of diffusers' `from_pretrained`.

    Raises:
        TypeError: an option does not exist.
        ValueError: a weight is missing, left over, or of another shape.
    """
    with_info = options.pop("output_loading_info", False)
    folder = _local_folder(pretrained_model_name_or_path, options.pop("subfolder", None) or "", options)
    with tempfile.TemporaryDirectory() as plain:
        for path in filter(Path.is_file, folder.iterdir()):
            _link(path, Path(plain, _renamed(path.name, PRUNED_NAME, PLAIN_NAME)))
        load = cast(Any, ModelMixin.from_pretrained).__func__
        try:
            model, info = load(cls, plain, output_loading_info=True, **options)
        except OSError as error:
            message = str(error).replace(plain, str(folder)).replace(PLAIN_NAME, PRUNED_NAME)
            raise OSError(message) from error
    model.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
    problems = [f"{len(info[kind])} {kind.partition('_')[0]} ({info[kind][0]})" for kind in info if info[kind]]
    if problems:
        raise ValueError(f"the weights in {folder} do not fit {cls.__name__}: {', '.join(problems)}")
    return (model, info) if with_info else model


def save_pretrained(
    self: Any,
    save_directory: str | Path,
    is_main_process: bool = True,
    safe_serialization: bool = True,
    variant: str | None = None,
    max_shard_size: int | str = "10GB",
) -> None:
    """Writes the configuration, the weights under their own file name, and the code that loads them.

    Raises:
        ValueError: weights that loading would not find again: of an adapter, quantised, or no safetensors.
    """
    check_savable(self)
    if not safe_serialization:
        raise ValueError("a pruned network is saved as safetensors only")
    if not is_main_process:
        return
    folder, cls, base = Path(save_directory), type(self), self.unpruned_class
    code = f"{source_code()}\n{CLASS_MARKER}\nfrom {base.__module__} import {base.__name__}\n\n"
    code += f"{cls.__name__} = pruned_class({base.__name__})\n"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as plain:
        cast(Any, ModelMixin.save_pretrained)(self, plain, variant=variant, max_shard_size=max_shard_size)
        Path(plain, f"{cls.__module__}.py").write_text(code, encoding="utf-8")
        label = f"{variant}." if variant else ""
        for name in (f"safetensors.index.{label}json", f"{label}safetensors"):  # of an earlier save
            (folder / f"{PRUNED_NAME}{name}").unlink(missing_ok=True)
        for path in Path(plain).iterdir():
            path.replace(folder / _renamed(path.name, PLAIN_NAME, PRUNED_NAME))


def source_code() -> str:
    """This file and those that it imports of ld-pruner, as one."""
    joined: set[str] = set()

    def code(file: Path) -> str:
        return JOINED_IMPORT.sub(imported, file.read_text(encoding="utf-8").split(f"\n{CLASS_MARKER}\n")[0])

    def imported(match: re.Match[str]) -> str:
        name = match[1]
        is_new = name not in joined
        joined.add(name)
        return code(SOURCE_FILE.with_name(f"{name}.py")) if is_new else ""

    return code(SOURCE_FILE)


def reduce_ex(self: Any, protocol: Any) -> Any:
    """Pickles and copies a network by its base class, as no module holds its own."""
    _, _, *state = cast(Any, object.__reduce_ex__(self, protocol))
    return _blank, (self.unpruned_class, hasattr(self, "auto_map")), *state


def _blank(base: Any, has_stand_ins: bool) -> Any:
    """A pruned network without contents, for pickle to fill."""
    cls = pruned_class(base) if has_stand_ins else adapting_class(base)
    return cls.__new__(cls)


def _renamed(name: str, old: str, new: str) -> str:
    """The name of a file, with another start; shards keep theirs, as their index names them."""
    return new + name.removeprefix(old) if name.startswith(old) and "-of-" not in name else name


def _local_folder(model: str | Path, subfolder: str, options: Mapping[str, Any]) -> Path:
    """The folder of a network; one of the Hub is downloaded."""
    if Path(model).is_dir():
        return Path(model, subfolder).resolve()
    wanted = {name: options[name] for name in HUB_OPTIONS if options.get(name) is not None}
    pattern = f"{subfolder}/*" if subfolder else "*"
    return Path(huggingface_hub.snapshot_download(str(model), allow_patterns=pattern, **wanted), subfolder)


def _link(file: Path, link: Path) -> None:
    try:
        link.symlink_to(file)
    except OSError:  # Windows allows links to some users only
        shutil.copyfile(file, link)


def check_savable(network: nn.Module) -> None:
    """Raises ValueError if the file of a network could not be read again: with an adapter, or quantised in place."""
    adapter = next((name for name, _ in network.named_modules() if name.endswith(".base_layer")), None)
    if adapter is not None:
        raise ValueError(
            f"{type(network).__name__} has an adapter at {adapter.removesuffix('.base_layer')!r}; "
            "fuse it and unload it, or only unload it, before saving"
        )
    if getattr(network, "hf_quantizer", None) is None:  # diffusers knows which of its quantised weights it can save
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if type(tensor) not in (torch.Tensor, nn.Parameter):
                raise ValueError(
                    f"{type(network).__name__} holds {type(tensor).__name__} at {name!r}, perhaps quantised; "
                    "save it before, and quantise after loading"
                )


def cast_(model: Any, dtype: torch.dtype) -> None:
    """Casts a network's weights in place, except those that its class keeps in float32."""
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        if weight.is_floating_point() and not kept & set(name.split(".")):
            weight.data = weight.data.to(dtype)
