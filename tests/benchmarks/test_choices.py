"""Pruning, fewer steps, a cache and int8 weights at equal latency, in little."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import choices
from benchmarks.records import read


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of DeepCache, torchao and diffusers
def test_every_choice_is_measured_and_kept(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--data", str(data), "--models", "satellite", "--steps", "4", "--small", "--runs", str(tmp_path / "runs")]
    words += ["--results", str(tmp_path)]
    choices.main(words)
    records = read(choices.STUDY, tmp_path)
    cells = {(record["settings"]["choice"], record["settings"]["target"]): record["result"] for record in records}
    assert set(cells) == {(choice, target) for choice, targets in choices.CHOICES.items() for target in targets}
    assert cells["original", None]["paired_distance"] == pytest.approx(0, abs=1e-9)
    assert cells["original", None]["noise_floor"] > 0.001
    assert 4 > cells["fewer steps", 0.65]["steps"] >= cells["fewer steps", 0.35]["steps"] >= 1
    assert all(cells["cache", target]["cache_interval"] in (2, 3, 4) for target in choices.TARGETS)
    assert cells["pruned", 0.35]["latency_ratio"]["median"] < cells["pruned", 0.65]["latency_ratio"]["median"] < 1
    assert 0 < cells["int8", None]["paired_distance"] < cells["pruned", 0.35]["paired_distance"]

    monkeypatch.setattr(choices.Choices, "measure", lambda *_: pytest.fail("measured again"))
    choices.main(words)
    assert len(list(choices.table(lambda study: read(study, tmp_path)))) == 2 + len(cells)


def record_of(choice: str, target: float | None, ratio: float, distance: float, **changes: Any) -> dict[str, Any]:
    result: dict[str, Any] = {"steps": 10, "cache_interval": None}
    result |= {"latency_ratio": dict.fromkeys(("median", "p10", "p90"), ratio)}
    result |= {"frechet_distance": distance, "interval": [distance, distance]}
    result |= {"paired_distance": 0.01, "paired_interval": [0.01, 0.02], **changes}
    return {"settings": {"model": "emoji", "steps": 10, "choice": choice, "target": target}, "result": result}


def test_a_choice_that_does_not_reach_its_target_says_so_and_is_not_the_best() -> None:
    records = [
        record_of("original", None, 1.0, 3.0, noise_floor=0.5),
        record_of("int8", None, 1.04, 3.0),
        record_of("pruned", 0.5, 0.48, 3.4),
        record_of("fewer steps", 0.5, 0.52, 3.6, steps=5),
        record_of("cache", 0.5, 0.61, 3.1, cache_interval=10),
    ]
    original, int8, pruned, fewer, cache = list(choices.table(lambda _: records))[2:]
    assert original.endswith("| 100.0% (100.0% to 100.0%) | 3.00 (3.00 to 3.00) | noise floor 0.5000 |")
    assert "104.0% (104.0% to 104.0%), does not reach" in int8
    assert "| 50% | pruned |  | 48.0% (48.0% to 48.0%) | **3.40 (3.40 to 3.40)** |" in pruned
    assert "| 5 steps | 52.0% (52.0% to 52.0%) | 3.60" in fewer
    assert "| filled every 10 steps | 61.0% (61.0% to 61.0%), does not reach | 3.10" in cache


def test_a_tool_that_cannot_be_used_is_a_row_with_its_reason() -> None:
    record = record_of("cache", 0.5, 1.0, 1.0)
    record["result"] = {"does_not_apply": "no block"}
    assert list(choices.table(lambda _: [record]))[2:] == [
        "| zoo:emoji, 10 steps | 50% | cache | does not apply: no block |  |  |  |"
    ]
