"""Where a program waits for its CUDA device."""

import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

WAITED = "called a synchronizing CUDA operation"  # what torch warns with
PACKAGES = ("ldpruner", "diffusers", "transformers")


@contextmanager
def counted_waits(device: torch.device) -> Iterator[Counter[str]]:
    """Counts the places, by file and line, where torch synchronizes this process with a CUDA device."""
    waits: Counter[str] = Counter()

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        if WAITED in str(message):
            waits[_place()] += 1

    mode = torch.cuda.set_sync_debug_mode if device.type == "cuda" else lambda _: None
    with warnings.catch_warnings(), patch.object(warnings, "showwarning", note):
        warnings.simplefilter("always")
        mode("warn")
        try:
            yield waits
        finally:
            mode("default")


def _place() -> str:
    """The innermost running line of this project, of diffusers or of transformers."""
    for frame in reversed(traceback.extract_stack()):
        parts = Path(frame.filename).parts
        package = next((name for name in PACKAGES if name in parts), None)
        if package is not None:
            return f"{'/'.join(parts[parts.index(package) :])}:{frame.lineno}"
    return "elsewhere"
