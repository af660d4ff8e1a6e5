"""Results as JSON files, one a cell, with the machine and the versions. A finished cell is not measured again."""

import contextlib
import json
import logging
import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("ld-pruner", "torch", "diffusers", "numpy", "scipy")

logger = logging.getLogger(__name__)


def cell(
    name: str, settings: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]], results: Path = RESULTS
) -> dict[str, Any]:
    """The result of a cell: read if it was measured with these settings, else measured and written."""
    path = results / f"{name}.json"
    if path.exists():
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if known["settings"] == dict(settings):
            return known
    logger.info("measuring %s", name)
    result = {"name": name, "settings": dict(settings), "result": dict(measure()), "machine": machine()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
    return result


def machine() -> dict[str, Any]:
    """What the measurements were made on."""
    accelerator = {"accelerator": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        **accelerator,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    """Of the packages that are installed: ld-pruner itself may be run from its folder."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def write_between(name: str, text: str, document: Path = ROOT / "README.md") -> None:
    """Writes a text into a document, between the comments that name its place."""
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, _, rest = document.read_text(encoding="utf-8").partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{document} has no place for {name!r}")
    document.write_text(f"{before}{start}{text}{end}{after}", encoding="utf-8")
