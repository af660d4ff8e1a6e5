"""Pipelines of diffusers that cannot be pruned are kept apart from those that were not tried."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import support
from benchmarks.records import read
from tests.families import FAMILIES, Family


def attempt(family: Family) -> dict[str, Any]:
    return support._tried(lambda: support._of_family(family))


@pytest.mark.extensive
@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_a_pipeline_goes_through_all_stages() -> None:
    assert attempt(FAMILIES["dit"]) == {"stage": "pruned"}


def test_a_configuration_that_does_not_run_says_nothing_about_ld_pruner() -> None:
    result = attempt(Family(FAMILIES["dit"].build, {"class_labels": "none"}))
    assert result["stage"] == "run"
    assert support._outcome(result["stage"]) == "not tried"


def test_a_missing_package_stops_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "NEEDED", ("no_such_package", "torch"))
    with pytest.raises(SystemExit, match="pip install no_such_package;"):
        support.configurations(Path())


def test_rows_are_grouped_by_reason_and_failures_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = {"A": ("run", "x"), "B": ("score", "y"), "C": ("run", "x"), "D": ("pruned", "")}
    records = [
        {"settings": {"pipeline": name}, "result": {"stage": stage, "error": error}}
        for name, (stage, error) in outcomes.items()
    ]
    monkeypatch.setattr(support, "read", lambda _: records)
    assert list(support.table())[2:] == ["| cannot be pruned | B | y |", "| not tried | A, C | x |"]
    assert list(support.summary())[2] == "| 4 | 1 | 1 | 2 |"


def test_at_most_a_twentieth_of_the_pipelines_cannot_be_pruned() -> None:
    stages = [record["result"]["stage"] for record in read("support")]
    failures = [stage for stage in stages if support._outcome(stage) == "cannot be pruned"]
    assert len(failures) <= 0.05 * len(stages)
    assert stages.count("pruned") > len(stages) / 2
