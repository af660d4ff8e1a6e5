"""Text from outside in Markdown: names, prompts and paths are shown, never read as markup."""

import html
import re
from collections.abc import Iterable, Sequence

MARKUP = re.compile(r"([\\`*_{}\[\]()#|~$:@]|(?<=www)\.)")  # colons, @ and www. make links and mentions


def plain(value: object) -> str:
    """Text on one line in which nothing is markup, HTML, a link or a mention."""
    text = html.escape(_one_line(value), quote=False)
    return MARKUP.sub(r"\\\1", text)


def code(value: object) -> str:
    """Text on one line as a code span, also in a table."""
    text = _one_line(value).replace("|", "\\|") or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    edge = " " if text[0] == "`" or text[-1] == "`" else ""
    return f"{fence}{edge}{text}{edge}{fence}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; its first column is text, the others numbers."""
    rule = ["---", *("---:" for _ in columns[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (columns, rule, *rows))


def _one_line(value: object) -> str:
    """Text without line breaks and characters that are not shown."""
    return "".join(letter if letter.isprintable() else " " for letter in " ".join(str(value).split()))
