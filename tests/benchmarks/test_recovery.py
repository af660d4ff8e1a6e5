"""What can be pruned can be finetuned; the rest has its reason."""

import functools
from typing import Any

import pytest

from benchmarks import recovery
from benchmarks.records import read
from benchmarks.support import _of_family
from tests.families import FAMILIES


@pytest.mark.extensive
@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize(
    ("name", "without_data", "with_data"),
    [
        ("dit", recovery.YES, recovery.YES),
        ("consistency", recovery.OWN_CALLS, "CMStochasticIterativeScheduler"),
    ],
)
def test_a_family_is_pruned_and_finetuned(name: str, without_data: str, with_data: str) -> None:
    result = recovery._outcomes(lambda: _of_family(FAMILIES[name]))
    assert result["without_data"] == without_data
    assert result["with_data"].startswith(with_data)


@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_a_pipeline_that_takes_its_own_steps_only_is_called_in_them() -> None:
    pipeline, inputs = _of_family(FAMILIES["dit"])
    call = type(pipeline).__call__

    class Strict(type(pipeline)):  # type: ignore[misc]
        @functools.wraps(call)
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            if options["num_inference_steps"] != 2:
                raise ValueError("this model takes 2 steps")
            return call(self, *arguments, **options)

    pipeline.__class__ = Strict
    inputs["num_inference_steps"] = 2
    probe, operators = recovery._watched(pipeline, inputs)
    assert probe.steps == 2
    assert operators


def test_a_row_names_the_pipelines_of_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = {
        "A": (recovery.YES, "A has | none"),
        "B": (recovery.OWN_CALLS, "B has | none"),
        "C": (recovery.YES,) * 2,
    }
    records = [
        {"settings": {"pipeline": name}, "result": {"without_data": first, "with_data": second}}
        for name, (first, second) in outcomes.items()
    ]
    records.append({"settings": {"pipeline": "D"}, "result": {"error": "D lacks a package"}})
    monkeypatch.setattr(recovery, "read", lambda _: records)
    assert list(recovery.table())[2:] == [
        f"| without data | B | {recovery.OWN_CALLS} |",
        "| with data | A, B | it has \\| none |",
        "| not tried | D | it lacks a package |",
    ]
    assert list(recovery.summary())[2:] == [
        "| without data | 3 | 2 | 1 | 100% |",
        "| with data | 3 | 1 | 0 | 33% |",
    ]


def test_nine_in_ten_pruned_pipelines_recover_without_data() -> None:
    outcomes = [record["result"] for record in read("recovery") if "error" not in record["result"]]
    recovered = [outcome for outcome in outcomes if outcome["without_data"] in (recovery.YES, recovery.OWN_CALLS)]
    assert len(outcomes) >= 60
    assert len(recovered) >= 0.9 * len(outcomes)
