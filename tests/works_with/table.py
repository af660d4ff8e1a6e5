"""The table of docs/works-with.md: written by `python -m tests.works_with`, and read back by the tests."""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from tests.works_with.things import THINGS
from tests.works_with.trial import NAMES, WORKS

PAGE = Path(__file__).parents[2] / "docs" / "works-with.md"
START, END = "<!-- table: works with -->", "<!-- end of table: works with -->"
LONGEST = 120  # characters of a reason
MARKS = {"in part": "in part", "refused": "refused", "-": "–"}  # noqa: RUF001  (a dash)


def mark(outcome: str) -> str:
    """What stands in a cell of the table."""
    return outcome if outcome == WORKS else MARKS.get(outcome.partition(":")[0], "**fails**")


def written(outcomes: Mapping[tuple[str, str], str]) -> str:
    """The table in Markdown, with the reasons below it."""
    lines = [START, f"| | {' | '.join(NAMES)} |", f"|---{'|---' * len(NAMES)}|"]
    for thing in THINGS:
        cells = [mark(outcomes.get((thing, name), "")) for name in NAMES]
        lines.append(f"| {thing} | {' | '.join(cells)} |")
    for kind, title in (("in part", "In part"), ("refused", "Refused"), ("-", "Does not apply")):
        families: dict[tuple[str, str], list[str]] = defaultdict(list)
        for (thing, name), outcome in outcomes.items():
            if outcome.startswith(f"{kind}: "):
                families[thing, outcome.removeprefix(f"{kind}: ")].append(name)
        if families:
            lines += ["", f"{title}:", ""]
            lines += [f"- {thing}, {', '.join(names)}: {plain(why)}" for (thing, why), names in families.items()]
    return "\n".join([*lines, END])


def plain(reason: str) -> str:
    """A reason on a page: no markup, and not longer than a line or two."""
    short = reason if len(reason) <= LONGEST else f"{reason[:LONGEST]}…"
    return short.replace("<", "&lt;").replace("`", "")


def replaced(page: str, table: str) -> str:
    """A page with its table replaced."""
    return re.sub(f"{re.escape(START)}.*{re.escape(END)}", lambda _: table, page, flags=re.DOTALL)


def read() -> dict[tuple[str, str], str]:
    """The cells of the page, by thing and family."""
    table = PAGE.read_text(encoding="utf-8").partition(START)[2].partition(END)[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines() if " | " in line]
    head, *rows = [[cell.strip(" |") for cell in row] for row in rows]
    return {
        (thing, name): cell for thing, *cells in rows for name, cell in zip(head[-len(cells) :], cells, strict=True)
    }
