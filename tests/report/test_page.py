"""The page: whole, by itself, and nothing from outside is markup."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

import ldpruner
from ldpruner.report.contents import gather
from ldpruner.report.page import _script, write_report
from tests.report.conftest import HOSTILE


class Page(HTMLParser):
    """The elements of a page, its text, and what it asks for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_one_file_that_asks_for_nothing(run: Path) -> None:
    path = ldpruner.write_report(run)
    assert path == run / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    addresses = [value for name, value in page.attributes if name in ("src", "href", "srcset", "action")]
    assert addresses
    assert all(address.startswith("data:") for address in addresses)
    assert "url(" not in text
    assert path.stat().st_size < 12e6


def test_every_operator_is_a_button_with_its_place(run: Path) -> None:
    page = Page(write_report(run).read_text(encoding="utf-8"))
    places = {int(value) for name, value in page.attributes if name == "data-place"}
    assert places == set(range(len(gather(run).operators)))


def test_text_from_outside_is_text(hostile: Path) -> None:
    text = write_report(hostile).read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("script") == 2
    assert f"{HOSTILE}, pruned" in page.text  # the model
    assert ("data-path", HOSTILE) in page.attributes
    assert ("alt", f"pruned: {HOSTILE}") in page.attributes
    assert "{{ 7 * 7 }}" in text  # no template in a template


@pytest.mark.parametrize("name", ["</script><script>alert(1)</script>", "<!--<script>", "a & b"])
def test_data_cannot_leave_its_element(name: str) -> None:
    written = str(_script({"name": name}))
    assert not {"<", ">", "&"} & set(written)
    assert json.loads(written) == {"name": name}


def test_another_place(run: Path, tmp_path: Path) -> None:
    assert write_report(run, tmp_path / "page.html") == tmp_path / "page.html"
    assert not (run / "report.html").exists()
