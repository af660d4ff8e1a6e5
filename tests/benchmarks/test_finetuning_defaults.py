"""The defaults of finetuning, in little."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import finetuning_defaults as study
from benchmarks.records import read
from ldpruner.finetuning import Training


def test_each_change_is_one_setting_of_the_defaults() -> None:
    defaults = study.training_of(study.DEFAULTS, 0)
    # what only the study has, and its answer
    new = {"max_train_steps": 1000, "early_stopping_patience": 5, "learning_rate": 3e-4}
    assert defaults.replace(**new) == Training()
    for change in study.CHANGES:
        settings = study.training_of(change, 0).model_dump()
        different = [name for name, value in defaults.model_dump().items() if settings[name] != value]
        assert different == list(study.CHANGES[change])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_cells_are_measured_and_kept(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {name: study.CHANGES[name] for name in (study.DEFAULTS, "learning_rate=0.001")}
    monkeypatch.setattr(study, "CHANGES", changes)
    words = ["--data", str(data), "--models", "satellite", "--seeds", "0", "--small"]
    words += ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path)]
    study.main(words)
    results = {record["settings"]["change"]: record["result"] for record in read(study.STUDY, tmp_path)}
    assert list(results) == [study.ORIGINAL, study.PRUNED, *changes]
    assert results[study.ORIGINAL]["frechet_distance"] < results[study.PRUNED]["frechet_distance"]
    distances = {results[name]["frechet_distance"] for name in (study.PRUNED, *changes)}
    assert len(distances) > 1
    assert results[study.DEFAULTS]["seconds"] > 0
    monkeypatch.setattr(study.Study, "measure", lambda *_: pytest.fail("measured again"))
    study.main(words)


def record_of(change: str, seed: int, distance: float) -> dict[str, Any]:
    result = {"frechet_distance": distance, "parameters": 3_000_000, "seconds": 90.0}
    return {"settings": {"model": "emoji", "change": change, "seed": seed}, "result": result}


def test_changes_are_compared_with_the_defaults_on_the_same_seed() -> None:
    records = [record_of(study.DEFAULTS, 0, 2.0), record_of(study.DEFAULTS, 1, 4.0)]
    records += [record_of("learning_rate=0.001", 0, 1.0), record_of("learning_rate=0.001", 1, 4.0)]
    records += [record_of("2 times the steps", 0, 1.5)]
    rows = [row.split(" | ") for row in study.table(lambda _: records)]
    change = next(row for row in rows if row[0] == "| learning_rate=0.001")
    assert change[1:] == ["2.50 (1.00 to 4.00)", "-29.3%", "-29.3%", "1.5 |"]
    lengths = list(study.length_table(lambda _: records))[2:]
    assert lengths == [
        "| zoo:emoji | 3.00 M | 600 | 3.20 | 3.00 (2.00 to 4.00) |",
        "| zoo:emoji | 3.00 M | 1200 | 6.40 | 1.50 |",
    ]
