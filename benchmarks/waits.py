"""Where a program waits for the device that it gives work to."""

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
    """Counts where this process waits for a CUDA device, as torch sees it, by file and line."""
    found: Counter[str] = Counter()

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        if WAITED in str(message):
            found[_place()] += 1

    mode = torch.cuda.set_sync_debug_mode if device.type == "cuda" else lambda _: None
    with warnings.catch_warnings(), patch.object(warnings, "showwarning", note):
        warnings.simplefilter("always")
        mode("warn")
        try:
            yield found
        finally:
            mode("default")


def _place() -> str:
    """The innermost line of this project, of diffusers or of transformers that is being run."""
    for frame in reversed(traceback.extract_stack()):
        parts = Path(frame.filename).parts
        package = next((one for one in PACKAGES if one in parts), None)
        if package is not None:
            return f"{'/'.join(parts[parts.index(package) :])}:{frame.lineno}"
    return "elsewhere"
