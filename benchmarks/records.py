"""Results as JSON lines: a file for each study, a line for each cell, with its settings and the machine."""

import contextlib
import fcntl
import json
import logging
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("ld-pruner", "torch", "diffusers", "numpy", "scipy")

Record: TypeAlias = dict[str, Any]  # settings, result, machine

logger = logging.getLogger(__name__)


def read(study: str, results: Path = RESULTS) -> list[Record]:
    """All records of a study, in the order of its file."""
    path = results / f"{study}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def cell(
    study: str, settings: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]], results: Path = RESULTS
) -> Record:
    """The record of a cell: read where the study has these settings, else measured and appended."""
    wanted = json.loads(json.dumps(settings))  # as it is when read: lists for tuples
    for record in read(study, results):
        if record["settings"] == wanted:
            return record
    logger.info("measuring %s: %s", study, wanted)
    record = {"settings": wanted, "result": dict(measure()), "machine": machine()}
    line = json.dumps(record, allow_nan=False)
    _append(results / f"{study}.jsonl", line)
    measured: Record = json.loads(line)
    return measured


def _append(path: Path, line: str) -> None:
    """Appends a whole line or nothing, also while other processes append theirs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        lines = path.read_text(encoding="utf-8") if path.exists() else ""
        partial = path.with_suffix(".partial")
        partial.write_text(f"{lines}{line}\n", encoding="utf-8")
        partial.replace(path)
    finally:
        os.close(folder)


def machine() -> dict[str, Any]:
    """The machine that measures, and the versions of the installed packages."""
    accelerator = {"accelerator": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    versions: dict[str, str] = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):  # ld-pruner itself may run from its folder
            versions[name] = version(name)
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        **accelerator,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """The lines of a Markdown table."""
    columns = list(head)
    lines = ["| " + " | ".join(row) + " |" for row in (columns, *rows)]
    return [lines[0].replace("|  |", "| |"), "|---" * len(columns) + "|", *lines[1:]]


def write_table(name: str, lines: Iterable[str], document: Path) -> None:
    """Writes lines between the comments `<!-- table: NAME -->` and `<!-- end of table: NAME -->` of a document.

    Raises:
        ValueError: the document has no such comments.
    """
    start, end = f"<!-- table: {name} -->\n", f"<!-- end of table: {name} -->"
    before, _, rest = document.read_text(encoding="utf-8").partition(start)
    _, marker, after = rest.partition(end)
    if not marker:
        raise ValueError(f"{document} has no place for the table {name!r}")
    text = "\n".join(lines)
    document.write_text(f"{before}{start}{text}\n{end}{after}", encoding="utf-8")
