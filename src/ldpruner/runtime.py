"""What a pruned denoiser needs to run and to load.

This file is copied into the folder of every saved pruned pipeline, so that the pipeline opens where ld-pruner is not
installed. It must import nothing of ld-pruner.
"""

import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

WEIGHTS_NAME = "pruned_model.safetensors"  # not the name that the unpruned class looks for
SOURCE_FILE = Path(__file__)
SETTING_TYPES = (bool, int, float, str, type(None))
CLASS_MARKER = "# The class of this folder"


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


@functools.cache
def pruned_class(base: Any) -> Any:
    """The class for pruned networks of a diffusers model class.

    Its configuration is that of `base` plus the list `removals`. Loading replays them: build `base`, remove the
    operators again, then load the weights strictly.
    """

    def build(self: Any, *args: Any, removals: Iterable[Mapping[str, Any]] = (), **kwargs: Any) -> None:
        base.__init__.__wrapped__(self, *args, **kwargs)
        remove_(self, removals)

    # diffusers takes the entries of a configuration from the signature.
    signature: Any = inspect.signature(base.__init__)
    removals = inspect.Parameter("removals", inspect.Parameter.KEYWORD_ONLY, default=())
    cast(Any, build).__signature__ = signature.replace(parameters=[*signature.parameters.values(), removals])
    name = f"Pruned{base.__name__}"
    body = {
        "__init__": register_to_config(build),
        "__module__": name.lower(),  # the file in the folder, which diffusers writes to model_index.json
        "__doc__": f"{base.__name__} with some operators removed.",
        "save_pretrained": save_pretrained,
        "from_pretrained": classmethod(cast(Any, from_pretrained)),
    }
    return type(name, (base,), body)


def save_pretrained(self: Any, save_directory: str | Path, is_main_process: bool = True, **_: Any) -> None:
    """Writes the configuration, the weights under their own file name, and the code that loads them."""
    if not is_main_process:
        return
    folder = Path(save_directory)
    folder.mkdir(parents=True, exist_ok=True)
    self.save_config(folder)
    state = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
    safetensors.torch.save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    cls, base = type(self), type(self).__bases__[0]
    code = SOURCE_FILE.read_text(encoding="utf-8").split(f"\n{CLASS_MARKER}\n")[0]
    code += f"\n{CLASS_MARKER}\nfrom {base.__module__} import {base.__name__}\n\n"
    code += f"{cls.__name__} = pruned_class({base.__name__})\n"
    (folder / f"{cls.__module__}.py").write_text(code, encoding="utf-8")


def from_pretrained(
    cls: Any,
    pretrained_model_name_or_path: str | Path,
    subfolder: str | None = None,
    torch_dtype: torch.dtype | None = None,
    **_: Any,
) -> Any:
    """Loads a pruned network from a local folder.

    Raises:
        RuntimeError: a weight is missing, left over, or of another shape.
    """
    folder = Path(pretrained_model_name_or_path, subfolder or "")
    model = cls.from_config(cls.load_config(folder))
    model.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS_NAME), strict=True)
    if torch_dtype is not None:
        cast_(model, torch_dtype)
    return model.eval()


def cast_(model: Any, dtype: torch.dtype) -> None:
    """Casts a network's weights in place, except those that its class keeps in float32."""
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        if weight.is_floating_point() and not kept & set(name.split(".")):
            weight.data = weight.data.to(dtype)
