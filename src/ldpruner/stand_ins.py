"""What takes the place of removed modules, and how the others are called after blocks have moved up.

This file becomes part of the code in the folder of every saved pruned pipeline: see `runtime`.
"""

import functools
import inspect
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

SETTING_TYPES = (bool, int, float, str, type(None))
# In a configuration: modules without a stand-in, by their names in the original, and the entries that it has changed
REMOVED, ORIGINAL = "_removed", "_original"


def select_input(
    selector: int | str | None, args: Sequence[Any], kwargs: Mapping[str, Any], names: Sequence[str] = ()
) -> Any:
    """The argument at a position (int) or of a name (str), however it was passed; None for None.

    Args:
        selector: which argument.
        args: those passed by position.
        kwargs: those passed by name.
        names: of the positions. Without them, position 0 is the first tensor if all arguments are named.
    """
    if selector is None:
        return None
    position = names.index(selector) if selector in names else selector
    if isinstance(position, str) or position < len(args):
        return kwargs[position] if isinstance(position, str) else args[position]
    if position < len(names) and names[position] in kwargs:
        return kwargs[names[position]]
    if position == 0 and not args:
        return next(value for value in kwargs.values() if isinstance(value, torch.Tensor))
    raise TypeError(f"a stand-in needs input {selector!r}, which is not among the arguments")


class StandIn(nn.Module):
    """Takes the place of a removed module, and accepts what that module accepts.

    Attributes:
        replaced_class: of the removed module.
        input_names: what its inputs are called, by position.
    """

    replaced_class: Any = None
    input_names: tuple[str, ...] = ()

    def selected(self, selector: int | str | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The argument that a selector chooses."""
        return select_input(selector, args, kwargs, self.input_names)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles and copies a stand-in by its kind, as no module holds the class for one replaced class."""
        kind = next(base for base in type(self).__mro__ if base in (Identity, Zero, Shortcut))
        _, _, *state = cast(Any, object.__reduce_ex__(self, protocol))
        return _blank_stand_in, (kind, self.replaced_class), *state

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Refuses to give the weights of a list of blocks alone: they do not fit the blocks of an unpruned network."""
        if prefix.partition(".")[0].isdigit():
            raise ValueError(
                f"these blocks are pruned, {prefix[:-1]!r} has no weights; "
                "what takes over the weights of blocks, such as a ControlNet, is built from the original network"
            )
        super()._save_to_state_dict(destination, prefix, keep_vars)


class Identity(StandIn):
    """Replaces an operator: each output is the input that `source` selects.

    `source` is a list if the operator returned a tuple.
    """

    def __init__(self, source: Any = 0) -> None:
        super().__init__()
        self.source = source

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.source, (list, tuple)):
            return tuple(self.selected(selector, args, kwargs) for selector in self.source)
        return self.selected(self.source, args, kwargs)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """None: nothing is left here that a LoRA could target or a cache could hook."""
        return iter(())


class Zero(Identity):
    """Replaces a residual branch: each output is zero, in the shape of the input that `source` selects."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs = super().forward(*args, **kwargs)
        if isinstance(inputs, tuple):
            return tuple(None if tensor is None else torch.zeros_like(tensor) for tensor in inputs)
        return torch.zeros_like(inputs)


class Shortcut(StandIn):
    """Replaces a block that changes its width: only its own shortcut projection is left."""

    def __init__(self, name: str, projection: nn.Module) -> None:
        super().__init__()
        self.add_module(name, projection)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        (projection,) = self.children()
        return projection(self.selected(0, args, kwargs))


@functools.cache
def stand_in_class(kind: Any, replaced: Any) -> Any:
    """A kind of stand-in for the modules of one class: it has the signature of their `forward`."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return kind.forward(self, *args, **kwargs)

    signature = inspect.signature(replaced.forward)
    cast(Any, forward).__signature__ = signature
    _, *inputs = signature.parameters.values()  # the first is `self`
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    body = {
        "__module__": kind.__module__,
        "__qualname__": f"{kind.__name__}[{replaced.__qualname__}]",
        "__doc__": kind.__doc__,
        "forward": forward,
        "replaced_class": replaced,
        "input_names": tuple(entry.name for entry in inputs if entry.kind in by_position),
    }
    return type(kind.__name__, (kind,), body)


def _blank_stand_in(kind: Any, replaced: Any) -> Any:
    """A stand-in without contents, for pickle to fill."""
    cls = stand_in_class(kind, replaced) if replaced is not None else kind
    return cls.__new__(cls)


def replacement(module: nn.Module, modification: str, source: Any) -> nn.Module:
    """Builds the module that replaces `module`, with its plain attributes: the network may read them elsewhere."""
    stand_in: nn.Module = _stand_in(module, modification, source)
    for name, value in vars(module).items():
        if isinstance(value, SETTING_TYPES) and not name.startswith("_") and not hasattr(stand_in, name):
            setattr(stand_in, name, value)
    return stand_in


def _stand_in(module: nn.Module, modification: str, source: Any) -> Any:
    kinds = {"identity": Identity, "zero": Zero, "shortcut": Shortcut}
    if modification not in kinds:
        raise ValueError(f"unknown modification {modification!r}")
    replaced: Any = type(module)
    cls = stand_in_class(kinds[modification], replaced)
    return cls(source, module.get_submodule(source)) if modification == "shortcut" else cls(source)


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


def module_at(network: nn.Module, name: str) -> nn.Module | None:
    """The module of a name, or the stand-in in whose place it was; None if the network never had it."""
    module: nn.Module | None = network
    for part in name.split("."):
        if module is None or (isinstance(module, StandIn) and part not in module._modules):
            break
        module = module._modules.get(part)
    return module


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
