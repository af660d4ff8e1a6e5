"""Plans: JSON in and out, and errors in one line."""

import json
from pathlib import Path

import pytest

from ldpruner.budget import Budget
from ldpruner.errors import PlanMismatch, StorageError
from ldpruner.profiling.machine import Machine
from ldpruner.scoring.results import Scores
from ldpruner.selection.plan import Plan
from ldpruner.selection.select import select


def test_a_plan_goes_through_json(scores: Scores, tmp_path: Path) -> None:
    plan = select(scores, Budget(parameters=0.7))
    path = tmp_path / "plan.json"
    plan.write(path)
    assert Plan.read(path) == plan
    assert Plan.read(path.parent) == plan
    content = json.loads(path.read_text(encoding="utf-8"))
    assert [one["removal"]["operator"] for one in content["removed"]] == [one.operator for one in plan.removed]
    assert path.read_text(encoding="utf-8").count("\n") > len(plan.removed)  # readable, and diffs by the line


@pytest.mark.case(name="plan-of-a-gpu")
def test_a_plan_that_was_timed_on_a_gpu_is_read_again(tmp_path: Path) -> None:
    machine = Machine(device="NVIDIA H200", precision="float16", threads=None, versions={})
    plan = Plan(removed=(), machine=machine)
    plan.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path) == plan


@pytest.mark.parametrize(
    ("content", "seen"),
    [("nonsense {", "plan.json"), ("[]", "plan.json"), ('{"removed": [{"removal": {"operator": 3}}]}', "operator")],
)
def test_a_file_that_is_no_plan_is_one_line(tmp_path: Path, content: str, seen: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(PlanMismatch) as caught:
        Plan.read(path)
    assert_one_line(caught.value, "plan.json", seen)


def test_a_plan_that_is_missing_or_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PlanMismatch) as missing:
        Plan.read(tmp_path / "no.json")
    assert_one_line(missing.value, "no.json")
    with pytest.raises(StorageError) as unwritable:
        Plan(removed=()).write("/dev/null/plan.json")
    assert_one_line(unwritable.value, "/dev/null/plan.json")


def assert_one_line(error: BaseException, *parts: str) -> None:
    message = str(error)
    assert "\n" not in message
    assert all(part in message for part in parts), message
