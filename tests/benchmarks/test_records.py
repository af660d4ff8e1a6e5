"""Cells of a study in one JSON-lines file."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.records import RESULTS, cell, markdown, read, write_table

SETTINGS = {"model": "emoji", "interval": (0.2, 0.7)}


def never() -> dict[str, Any]:
    raise AssertionError("measured again")


def test_a_cell_is_measured_once_for_its_settings(tmp_path: Path) -> None:
    record = cell("study", SETTINGS, lambda: {"distance": 0.1}, tmp_path)
    assert record["settings"] == {"model": "emoji", "interval": [0.2, 0.7]}
    assert {"processor", "cores", "versions"} <= set(record["machine"])
    assert cell("study", SETTINGS, never, tmp_path) == record
    other = cell("study", {**SETTINGS, "model": "digits"}, lambda: {"distance": 2}, tmp_path)
    assert read("study", tmp_path) == [record, other]
    assert [path.name for path in tmp_path.iterdir()] == ["study.jsonl"]


def test_a_cell_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    cell("study", SETTINGS, lambda: {"distance": 0.1}, tmp_path)
    before = (tmp_path / "study.jsonl").read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        cell("study", {}, lambda: {"distance": float("nan")}, tmp_path)
    assert (tmp_path / "study.jsonl").read_bytes() == before


def test_each_committed_cell_has_settings_of_its_own() -> None:
    for path in RESULTS.iterdir():
        settings = [str(sorted(record["settings"].items())) for record in read(path.stem)]
        assert len(set(settings)) == len(settings), path


def test_a_table_replaces_the_text_between_its_markers(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- table: a -->\nold\n<!-- end of table: a -->\nafter\n")
    write_table("a", markdown(["x", "y"], [["1", "2"]]), document)
    table = "| x | y |\n|---|---|\n| 1 | 2 |"
    assert document.read_text() == f"before\n<!-- table: a -->\n{table}\n<!-- end of table: a -->\nafter\n"
    with pytest.raises(ValueError, match="no place for the table 'b'"):
        write_table("b", [], document)
