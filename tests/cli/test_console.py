"""What reaches the terminal: safe text, whole names, bars on standard error only."""

import json
import logging

import pytest

from ldpruner.cli.console import Table, escaped, shortened, terminal

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


def test_a_long_error_keeps_its_beginning_and_its_end() -> None:
    text = "no model " + "x" * 5000 + "; give another"
    assert shortened("short") == "short"
    assert shortened(text).startswith("no model x")
    assert shortened(text).endswith("x; give another")
    assert len(shortened(text)) < 1300


@pytest.mark.case(name="terminal-escapes")
def test_names_in_lines_tables_bars_and_log_lines_are_neither_markup_nor_obeyed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "m2/[/]\x1b[31m\r[bold]x[/bold]\u2028"
    shown = "m2/[/]\\x1b[31m\\r[bold]x[/bold]\\u2028"
    terminal.configure(quiet=False, verbose=False)
    logging.getLogger("ldpruner.somewhere").warning("opening %s", name)
    terminal.note(name, "red")
    terminal.say(name)
    terminal.show(Table((name, ">n"), [(name, "1")], title=name))
    list(terminal.progress([1], name))
    plain = capsys.readouterr()
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    list(terminal.progress([1], name))
    bar = capsys.readouterr()
    for text, count in ((plain.out, 4), (plain.err, 3), (bar.err, 1)):
        assert text.count(shown) >= count
        assert not {"\u2028", "\r"} & {*text} or text is bar.err
        assert "\x1b[31m\r" not in text


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


def test_a_log_says_how_long_work_takes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldpruner.cli.console.SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr("ldpruner.cli.console.time.monotonic", iter(range(0, 500, 60)).__next__)
    assert list(terminal.progress(range(4), "scoring")) == [0, 1, 2, 3]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "scoring ...",
        "scoring: 1 of 4, about 0:03:00 left",
        "scoring: 2 of 4, about 0:02:00 left",
        "scoring: 3 of 4, about 0:01:00 left",
    ]
