"""The reference is made from the commands."""

from pathlib import Path

from ldpruner.cli.reference import reference
from tests.cli.test_app import NAMES

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run: python -m ldpruner.cli.reference > docs/cli.md"


def test_the_page_has_every_command_and_its_options() -> None:
    page = reference()
    for name in NAMES:
        assert f"\n## `ldpruner {name}`\n" in page
    assert "* `--max-train-steps <int>`: " in page
    assert "Optimizer steps" in page
