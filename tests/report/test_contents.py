"""What the page says is what the run folder holds."""

from pathlib import Path

import pytest

from ldpruner import Budget, select
from ldpruner.errors import RunStoreError
from ldpruner.recovery import finetune_run
from ldpruner.report.contents import gather
from ldpruner.run_folder import RunFolder
from ldpruner.workflow import evaluate_run, select_run
from tests.finetuning.conftest import PROBE, short


def test_the_headline_has_the_measured_numbers(run: Path) -> None:
    contents = gather(run)
    comparison = RunFolder(run).comparison()
    assert comparison is not None
    assert comparison.latency_ratio is not None
    text = " ".join(contents.sentences)
    assert f"A call takes {100 * comparison.latency_ratio.median:.0f} % of the original's time (" in text
    assert f"{len(RunFolder(run).plan().removed)} of " in text
    assert "The quality was not measured" in text


def test_an_evaluation_is_shown_with_its_verdict(run: Path) -> None:
    evaluation = evaluate_run(run, probe=RunFolder(run).scores().probe.replace(samples=6), device="cpu")
    contents = gather(run)
    assert contents.evaluated == "pruned"
    rows = {row.name: row for row in contents.qualities}
    shift = evaluation["latent_shift"]
    assert shift.pruned is not None
    assert rows["latent shift"].pruned == f"{shift.pruned:.4g}"
    assert rows["latent shift"].verdict in ("as good", "worse")
    assert "parameters" not in rows
    assert contents.tiles[-1].value == rows["Fréchet distance"].pruned
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


def test_tiles_charts_and_tables_are_of_the_run(run: Path) -> None:
    finetune_run(run, short(max_train_steps=4, validation_steps=2), probe=PROBE.replace(samples=2), device="cpu")
    contents, history = gather(run), RunFolder(run).history()
    assert history is not None
    assert contents.tiles[0].value == contents.costs[0].share
    assert [row[0] for row in contents.training] == ["0", "2", "4"]
    assert set(contents.charts) == {"importance", "frontier", "training"}
    assert len(contents.charts["frontier"].marks) == len(contents.budgets) + 1
    assert f"ldpruner finetune --run {run}" in contents.commands
    assert contents.samples.stages == ("original", "pruned", "recovered")


def test_what_goes_with_a_removal_is_struck_out_too(run: Path) -> None:
    plan = RunFolder(run).plan()
    gone = gather(run).data["plan"]["gone"]
    assert set(gone) == {name for planned in plan.removed for name in (planned.operator, *planned.removal.cascaded)}


def test_a_later_timing_takes_the_place_of_the_first(run: Path) -> None:
    evaluation = evaluate_run(run, probe=RunFolder(run).scores().probe.replace(samples=6), device="cpu")
    ratio = evaluation["latency_ratio"].pruned
    assert ratio is not None
    contents = gather(run)
    assert contents.costs[0].share == f"{100 * ratio:.0f} %"
    assert f"A call takes {100 * ratio:.0f} % of the original's time (" in " ".join(contents.sentences)


def test_what_was_measured_of_another_plan_is_left_out(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert gather(run).costs
    select_run(run, Budget(parameters=0.99))
    contents = gather(run)
    assert contents.costs == ()
    assert contents.samples.shown == ()
    assert "is predicted to take" in " ".join(contents.sentences)
    assert "of another plan" in caplog.messages[0]


def test_without_scores_it_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunStoreError, match="no run at"):
        gather(tmp_path)
