"""The tables of the documents are those of the committed records."""

import shutil
from pathlib import Path

import pytest

from benchmarks import comparison_tables, results_page
from benchmarks.cells import distance_text
from benchmarks.records import ROOT


def test_the_committed_tables_are_those_of_the_committed_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "README.md", tmp_path)
    monkeypatch.setattr(results_page, "DOCUMENTS", tmp_path / "docs")
    monkeypatch.setattr(comparison_tables, "CURVES", tmp_path / "curves.png")
    results_page.main()
    for page in (tmp_path / "docs").rglob("*.md"):
        assert page.read_text() == (ROOT / page.relative_to(tmp_path)).read_text(), page.name
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text()
    assert (tmp_path / "curves.png").stat().st_size > 0


@pytest.mark.parametrize(("values", "text"), [([1.0], "1.00 (0.50 to 2.00)"), ([1.0, 3.0], "2.00 ± 12.71")])
def test_one_seed_has_a_bootstrap_interval_and_several_that_over_seeds(values: list[float], text: str) -> None:
    results = [{"after": {"frechet_distance": value, "interval": [0.5, 2.0]}} for value in values]
    assert distance_text(results, "after") == text
