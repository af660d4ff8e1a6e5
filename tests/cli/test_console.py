"""What reaches the terminal: safe text, whole names, bars on standard error only."""

import json

import pytest

from ldpruner.cli.console import Table, escaped, terminal

TABLE = Table(("operator", ">score"), [("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0", "0.5")])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("[/red]", "[/red]"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\nb\r", "a\\nb\\r"),
        ("ä 中", "ä 中"),
    ],
)
def test_control_characters_are_visible(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_a_direction_override_is_visible() -> None:
    assert escaped("exe.\u202egnp") == "exe.\\u202egnp"


def test_a_name_is_whole_in_a_narrow_terminal_and_in_a_pipe() -> None:
    (name, figure) = TABLE.rows[0]
    header, row = TABLE.lines()
    assert row == f"{name}  {'0.5':>5}"
    assert header.startswith("operator ")
    narrow = list(TABLE.lines(40))
    assert narrow[2:] == [name, f"    {figure:>5}"]
    assert list(TABLE.lines(80)) == [header, row]


def test_columns_are_as_wide_as_a_terminal_shows_them() -> None:
    lines = list(Table((">n", "text"), [("中", "a"), ("b", "c")]).lines())
    assert lines == [" n  text", "中  a", " b  c"]


def test_a_pipe_gets_each_row_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    wide = Table(("a", "b"), [("x" * 300, "[/red]\x1b")], title="t" * 200)
    terminal.show(wide)
    title, header, row = capsys.readouterr().out.splitlines()
    assert title == "t" * 200
    assert header.split() == ["a", "b"]
    assert row == "x" * 300 + "  [/red]\\x1b"


def test_json_is_one_line_of_plain_letters(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.json({"name": "ä\x1b"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"name": "ä\x1b"}
    assert out.isascii()
    assert out.count("\n") == 1


def test_progress_goes_to_standard_error_and_passes_all_items(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(terminal.progress(range(3), "counting [/]")) == [0, 1, 2]
    output = capsys.readouterr()
    assert output.out == ""
    assert "counting [/]" in output.err
