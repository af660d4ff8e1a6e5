"""A network's call as a flat list of named tensors, as other runtimes take it."""

import inspect
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import TreeSpec, tree_flatten_with_path, tree_unflatten

from ldpruner.errors import ExportError, shown
from ldpruner.pipelines.call_values import as_json
from ldpruner.values import Value

ELSE = "export again with a call like this one"


class TensorInput(Value):
    """A tensor that an exported network reads.

    Attributes:
        name: in the file of the network.
        path: where it is in the call, such as `added_cond_kwargs.text_embeds`.
        dtype: such as `float32`.
        shape: its size; None where any size is taken.
    """

    name: str
    path: str
    dtype: str
    shape: tuple[int | None, ...]


class CallLayout(Value):
    """What calls of an exported network look like.

    Attributes:
        inputs: the tensors, in their order.
        constants: all else by path, as JSON; the network was recorded with these values.
    """

    inputs: tuple[TensorInput, ...]
    constants: dict[str, Any]

    def tensors(self, leaves: Mapping[str, Any]) -> list[torch.Tensor]:
        """The tensors of a call, in the dtypes of the file.

        Raises:
            ExportError: the call differs from the recorded one in more than the values and free sizes of tensors.
        """
        paths = {*self.constants, *(tensor.path for tensor in self.inputs)}
        if different := sorted(paths ^ leaves.keys()):
            raise ExportError(f"the exported network knows no call with or without {', '.join(different)}; {ELSE}")
        for path, constant in self.constants.items():
            if isinstance(leaves[path], torch.Tensor) or as_json(leaves[path]) != constant:
                raise ExportError(
                    f"the network was exported with {path}={shown(constant)}, not {shown(leaves[path])}; {ELSE}"
                )
        return [_checked(tensor, leaves[tensor.path]) for tensor in self.inputs]


def _checked(expected: TensorInput, value: Any) -> torch.Tensor:
    tensor = torch.as_tensor(value)
    fits = len(tensor.shape) == len(expected.shape) and all(
        size is None or size == own for size, own in zip(expected.shape, tensor.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in expected.shape)
        raise ExportError(f"{expected.path} is of size {list(tensor.shape)}, and was exported for [{wanted}]; {ELSE}")
    return tensor.to(getattr(torch, expected.dtype))


@dataclass(frozen=True)
class FlatCall:
    """A call of a network.

    Attributes:
        leaves: its values by path, tensors and all else.
        spec: how they are nested.
        signature: of the network's `forward`.
    """

    leaves: dict[str, Any]
    spec: TreeSpec
    signature: inspect.Signature

    @classmethod
    def of(cls, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> "FlatCall":
        """A call by position, by name, or both: the same values have the same paths."""
        signature = inspect.signature(forward)
        pairs, spec = tree_flatten_with_path(dict(signature.bind(*args, **kwargs).arguments))
        return cls({".".join(map(_part, path)): leaf for path, leaf in pairs}, spec, signature)

    def arguments(self, leaves: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with other values."""
        values = tree_unflatten([leaves[path] for path in self.leaves], self.spec)
        bound = inspect.BoundArguments(self.signature, OrderedDict(values))
        return bound.args, bound.kwargs

    def tensors(self, numbers: Sequence[str] = ()) -> dict[str, torch.Tensor]:
        """The tensors by path, and the numbers of some paths as tensors."""
        return {
            path: torch.as_tensor(leaf)
            for path, leaf in self.leaves.items()
            if isinstance(leaf, torch.Tensor) or path in numbers
        }


def _part(key: Any) -> str:
    """A step of a path: the key of a dictionary, or the place in a list."""
    return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))


def input_names(paths: Sequence[str]) -> list[str]:
    """Names for tensors: the last part of a path where that is unique."""
    counts = Counter(path.rpartition(".")[2] for path in paths)
    last = {path: path.rpartition(".")[2] for path in paths}
    return [last[path] if counts[last[path]] == 1 and not last[path].isdigit() else path for path in paths]


def is_number(value: Any) -> bool:
    """Whether a value of a call is a number that a network may compute with."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
