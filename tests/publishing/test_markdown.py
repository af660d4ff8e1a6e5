"""Text from outside is shown, never read as markup."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldpruner.publishing.markdown import code, plain, table


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("openrail++", "openrail++"),
        ("[x](javascript:alert(1))", r"\[x\]\(javascript\:alert\(1\)\)"),
        ("<img src=x onerror=y>", "&lt;img src=x onerror=y&gt;"),
        ("a | b", r"a \| b"),
        ("one\n\n# two", r"one \# two"),
        ("https://x www.x me@x", r"https\://x www\.x me\@x"),
        ("a\x1b[31m\u202eb", r"a \[31m b"),
    ],
)
def test_plain_text_has_no_markup(text: str, shown: str) -> None:
    assert plain(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"), [("a", "`a`"), ("a`b", "``a`b``"), ("`", "`` ` ``"), ("a|b", r"`a\|b`"), ("", "` `")]
)
def test_a_code_span_holds_any_text(text: str, shown: str) -> None:
    assert code(text) == shown


@given(st.text())
def test_whatever_the_text_the_span_is_one_line_and_its_fence_is_longer_than_any_run_inside(text: str) -> None:
    span = code(text)
    fence = span[: len(span) - len(span.lstrip("`"))]
    assert span.isprintable()
    assert span.endswith(fence)
    assert fence not in span[len(fence) : -len(fence)]


def test_a_table_has_a_row_for_each_line() -> None:
    assert table(("a", "b"), [("1", "2")]).splitlines() == ["| a | b |", "| --- | ---: |", "| 1 | 2 |"]
