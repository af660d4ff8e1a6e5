"""The page of a run, or of several: one file that asks for nothing from anywhere."""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ldpruner import __version__
from ldpruner.files import write_atomic
from ldpruner.report import charts
from ldpruner.report.comparison import compare_runs
from ldpruner.report.contents import gather

FILE, COMPARISON_FILE = "report.html", "comparison.html"
PARTS = files("ldpruner.report")
PLOT = {
    "width": charts.WIDTH,
    "height": charts.HEIGHT,
    "left": charts.LEFT,
    "right": charts.WIDTH - charts.RIGHT,
    "top": charts.TOP,
    "bottom": charts.HEIGHT - charts.BOTTOM,
}


def write_report(run: Path | str | Sequence[Path | str], out: Path | str | None = None) -> Path:
    """Writes a run folder, or several side by side, as one self-contained page.

    Args:
        run: a run folder with scores and a plan; or several that were timed or evaluated.
        out: the file; None is `report.html` in the run folder, or `comparison.html` here for several.

    Raises:
        RunStoreError: a folder has no scores, or a file of it cannot be read.
        PlanMismatch: it has no plan.
        StorageError: the page cannot be written.
    """
    if isinstance(run, (str, Path)):
        target = Path(out) if out is not None else Path(run) / FILE
        write_page(target, "page", gather(run), scripts=("samples.js", "page.js"))
    else:
        target = Path(out or COMPARISON_FILE)
        write_page(target, "comparison", compare_runs(run), scripts=())
    return target


def write_page(target: Path, name: str, contents: Any, scripts: Sequence[str]) -> None:
    """Fills the template of this name with what a page says, and writes it as one file."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    options: dict[str, Any] = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=FunctionLoader(_part), undefined=StrictUndefined, **options)
    environment.filters["script"] = _script
    shared = {"style": _part("page.css"), "code": "".join(map(_part, scripts)), "version": __version__, "size": PLOT}
    write_atomic(target, environment.get_template(f"{name}.html.jinja").render(report=contents, **shared))


def _part(name: str) -> str:
    return PARTS.joinpath(name).read_text(encoding="utf-8")


def _script(value: Any) -> Any:
    """JSON inside a script element: what would end the element is written as an escape."""
    from markupsafe import Markup

    text = json.dumps(value, allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
