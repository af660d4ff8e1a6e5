"""What a pruned denoiser needs to run and to load.

This file is copied into the folder of every saved pruned pipeline, so that the pipeline opens where ld-pruner is not
installed. It must import nothing of ld-pruner.
"""

import functools
import inspect
import itertools
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

# Weights, or their index, as diffusers names them, and as a pruned network does: the unpruned class would find the
# former, and fill what is missing with random values. DiffusionPipeline downloads both.
PLAIN_NAME, PRUNED_NAME = "diffusion_pytorch_model.", "model."
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
SOURCE_FILE = Path(__file__)
SETTING_TYPES = (bool, int, float, str, type(None))
CLASS_MARKER = "# The class of this folder"
REMOVED = "_removed"  # in a configuration: modules without a stand-in, by their names in the original


def select_input(selector: int | str | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The argument at a position (int) or of a name (str); None for None.

    If all arguments are named, position 0 is the first tensor.
    """
    if selector is None:
        return None
    if selector == 0 and not args:
        return next(value for value in kwargs.values() if isinstance(value, torch.Tensor))
    return args[selector] if isinstance(selector, int) else kwargs[selector]


class Identity(nn.Module):
    """Replaces an operator: each output is the input that `source` selects.

    `source` is a list if the operator returned a tuple.
    """

    def __init__(self, source: Any = 0) -> None:
        super().__init__()
        self.source = source

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.source, (list, tuple)):
            return tuple(select_input(selector, args, kwargs) for selector in self.source)
        return select_input(self.source, args, kwargs)


class Zero(Identity):
    """Replaces a residual branch: each output is zero, in the shape of the input that `source` selects."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs = super().forward(*args, **kwargs)
        if isinstance(inputs, tuple):
            return tuple(None if tensor is None else torch.zeros_like(tensor) for tensor in inputs)
        return torch.zeros_like(inputs)


class Shortcut(nn.Module):
    """Replaces a block that changes its width: only its own shortcut projection is left."""

    def __init__(self, name: str, projection: nn.Module) -> None:
        super().__init__()
        self.add_module(name, projection)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        (projection,) = self.children()
        return projection(select_input(0, args, kwargs))


def replacement(module: nn.Module, modification: str, source: Any) -> nn.Module:
    """Builds the module that replaces `module`, with its plain attributes: the network may read them elsewhere."""
    stand_in = _stand_in(module, modification, source)
    for name, value in vars(module).items():
        if isinstance(value, SETTING_TYPES) and not name.startswith("_") and name not in vars(stand_in):
            setattr(stand_in, name, value)
    return stand_in


def _stand_in(module: nn.Module, modification: str, source: Any) -> nn.Module:
    if modification == "identity":
        return Identity(source)
    if modification == "zero":
        return Zero(source)
    if modification == "shortcut":
        return Shortcut(source, module.get_submodule(source))
    raise ValueError(f"unknown modification {modification!r}")


def replacements(denoiser: nn.Module, removal: Mapping[str, Any]) -> list[tuple[nn.Module, nn.Module]]:
    """The modules that a removal takes out, each with its replacement. Nothing changes yet.

    Args:
        denoiser: the network.
        removal: has the keys operator, modification, source and cascaded (the operators that feed only this one).
    """
    module = denoiser.get_submodule(removal["operator"])
    cascaded = [denoiser.get_submodule(name) for name in removal["cascaded"]]
    pairs = [(module, replacement(module, removal["modification"], removal["source"]))]
    return pairs + [(module, replacement(module, "identity", 0)) for module in cascaded]


def swap_(denoiser: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replaces a module wherever it is registered: a shared module has several places."""
    for parent in list(denoiser.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, new)


def remove_(denoiser: nn.Module, removals: Iterable[Mapping[str, Any]]) -> None:
    """Removes operators in place, in order: a later removal may take out what an earlier one left."""
    for removal in removals:
        for module, stand_in in replacements(denoiser, removal):
            swap_(denoiser, module, stand_in)


# Names: a module that leaves a list of blocks makes the later ones move up


def new_name(name: str, removed: Collection[str]) -> str | None:
    """How a module or weight of the original network is called now; None if it is gone.

    Args:
        name: dotted, in the original network.
        removed: modules of the original network that are gone, without a stand-in.
    """
    path, new = "", []
    for part in name.split("."):
        place = f"{path}{part}"
        if place in removed:
            return None
        earlier = sum(f"{path}{index}" in removed for index in range(int(part))) if part.isdigit() else 0
        new.append(str(int(part) - earlier) if earlier else part)
        path = f"{place}."
    return ".".join(new)


def old_name(name: str, removed: Collection[str]) -> str:
    """How a module or weight of a pruned network is called in the original: the inverse of `new_name`."""
    path = ""
    for part in name.split("."):
        place, left = part, int(part) if part.isdigit() else -1
        if left >= 0:
            kept = (index for index in itertools.count() if f"{path}{index}" not in removed)
            place = str(next(itertools.islice(kept, left, None)))
        path += f"{place}."
    return path[:-1]


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
    code = SOURCE_FILE.read_text(encoding="utf-8").split(f"\n{CLASS_MARKER}\n")[0]
    code += f"\n{CLASS_MARKER}\nfrom {base.__module__} import {base.__name__}\n\n"
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
