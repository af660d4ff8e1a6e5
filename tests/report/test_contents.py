"""What the page says is what the run folder holds."""

from pathlib import Path

import pytest

from ldpruner import Budget, select
from ldpruner.errors import RunStoreError
from ldpruner.report.contents import gather
from ldpruner.run_folder import RunFolder
from ldpruner.workflow import evaluate_run


def test_the_headline_has_the_measured_numbers(run: Path) -> None:
    contents = gather(run)
    comparison = RunFolder(run).comparison()
    assert comparison is not None
    assert comparison.latency_ratio is not None
    text = " ".join(contents.sentences)
    assert f"A call takes {100 * comparison.latency_ratio.median:.0f} % of the original's time, as measured" in text
    assert f"{len(RunFolder(run).plan().removed)} of " in text
    assert "The quality was not measured" in text


def test_an_evaluation_is_shown_with_its_verdict(run: Path) -> None:
    evaluation = evaluate_run(run, probe=RunFolder(run).scores().probe.replace(samples=6), device="cpu")
    contents = gather(run)
    assert contents.evaluated == "pruned"
    rows = {row.name: row for row in contents.qualities}
    shift = evaluation["latent_shift"]
    assert shift.pruned is not None
    assert rows["latent shift"].pruned.startswith(f"{shift.pruned:.4g}")
    assert rows["latent shift"].note.endswith("worse")
    assert "parameters" not in rows
    assert contents.protocol is not None


def test_another_budget_shows_the_plan_that_select_gives(run: Path) -> None:
    scores, contents = RunFolder(run).scores(), gather(run)
    plans = {plan["budget"]: plan for plan in contents.data["plans"]}
    assert plans
    for kept, plan in plans.items():
        selected = select(scores, Budget(latency=kept))
        assert [contents.operators[place].operator for place in plan["removed"]] == [
            removal.operator for removal in selected.removed
        ]
        assert selected.predicted is not None
        assert plan["left"] == selected.predicted.model_dump()


def test_without_scores_it_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunStoreError, match="no run at"):
        gather(tmp_path)
