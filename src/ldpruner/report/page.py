"""The page: one file that asks for nothing from anywhere."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from ldpruner import __version__
from ldpruner.files import write_atomic
from ldpruner.report.contents import gather

FILE = "report.html"
PARTS = files("ldpruner.report")


def write_report(run: Path | str, out: Path | str | None = None) -> Path:
    """Writes a run folder as one self-contained page.

    Args:
        run: a run folder with scores and a plan.
        out: the file; None is `report.html` in the run folder.

    Raises:
        RunStoreError: the folder has no scores, or a file of it cannot be read.
        PlanMismatch: it has no plan.
        StorageError: the page cannot be written.
    """
    from jinja2 import Environment, StrictUndefined

    contents = gather(run)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["script"] = _script
    template = environment.from_string(_part("page.html.jinja"))
    target = Path(out) if out is not None else Path(run) / FILE
    text = template.render(report=contents, style=_part("page.css"), code=_part("page.js"), version=__version__)
    write_atomic(target, text)
    return target


def _part(name: str) -> str:
    return PARTS.joinpath(name).read_text(encoding="utf-8")


def _script(value: Any) -> Any:
    """JSON inside a script element: what would end the element is written as an escape."""
    from markupsafe import Markup

    text = json.dumps(value, allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
