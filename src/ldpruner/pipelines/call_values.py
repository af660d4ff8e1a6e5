"""Values of a pipeline's call as JSON: images and tensors become their type and a digest."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldpruner.errors import ProbeError, shown
from ldpruner.values import Value

MAX_DEPTH = 20  # of lists in lists
PLAIN = (bool, int, float, str, type(None))  # JSON holds them
ARRAYS = (Image.Image, torch.Tensor, np.ndarray)


class ArgumentDigest(Value):
    """Stands in a probe that was read from JSON for an image or a tensor, which JSON does not hold.

    Attributes:
        type: such as `Image`.
        digest: of its size and contents.
    """

    type: str
    digest: str


def from_json(name: str, value: Any, depth: int = 0) -> Any:
    """A value of a call as it was given, or from JSON, where digests stand for images and tensors.

    Raises:
        ProbeError: it is nothing that a file can keep or identify, such as a function.
    """
    if depth > MAX_DEPTH:
        raise ProbeError(f"probe call {name}: lists within lists, more than {MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        if value.keys() == set(ArgumentDigest.model_fields) and all(isinstance(part, str) for part in value.values()):
            return ArgumentDigest(**value)
        return {key: from_json(name, item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = (from_json(name, item, depth + 1) for item in value)
        return tuple(items) if isinstance(value, tuple) else list(items)
    if isinstance(value, (float, np.floating)) and not math.isfinite(value):
        raise ProbeError(f"probe call {name}={value}: give a finite number")
    is_held = isinstance(value, (*PLAIN, *ARRAYS, Path, np.generic, torch.dtype, ArgumentDigest))
    if not is_held and (isinstance(value, type) or not dataclasses.is_dataclass(value)):
        raise ProbeError(
            f"probe call {name}={shown(value)}: give a number, a text, an image, a tensor, or a list of these"
        )
    return value


def as_json(value: Any) -> Any:
    """The value itself if JSON can hold it; of an image, a tensor and the like the type and a digest."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, (Path, np.generic)):
        return str(value) if isinstance(value, Path) else value.item()
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, ArgumentDigest):
        return value.model_dump()
    digest = hashlib.blake2b(_contents(value), digest_size=8).hexdigest()
    return {"type": type(value).__name__, "digest": digest}


def digests_in(value: Any) -> list[ArgumentDigest]:
    """The digests that stand for images or tensors in a value."""
    if isinstance(value, ArgumentDigest):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [digest for item in items for digest in digests_in(item)]


def _contents(value: Any) -> bytes:
    """The type, the size and the contents of an image, a tensor, an array, a precision or a dataclass."""
    size: object
    if isinstance(value, Image.Image):
        size, data = (value.mode, value.size), value.tobytes()
    elif isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().flatten()
        size, data = (value.dtype, tuple(value.shape)), flat.view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        size, data = (value.dtype.str, value.shape), value.tobytes()
    else:
        parts = vars(value) if dataclasses.is_dataclass(value) else repr(value)
        size, data = (), json.dumps(as_json(parts), sort_keys=True).encode()
    return f"{size} ".encode() + data
