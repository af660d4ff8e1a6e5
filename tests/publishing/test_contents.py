"""What of a run folder is published."""

import json
import shutil
from pathlib import Path

import pytest

import ldpruner
from ldpruner.errors import PipelineNotFound, RunStoreError
from ldpruner.evaluation.evaluate import Evaluation
from ldpruner.evaluation.measures import Measure
from ldpruner.publishing.contents import Contents
from ldpruner.run_folder import RunFolder


def card_of(run: Path, place: Path) -> str:
    place.mkdir()
    Contents(run, None).write(place, "owner/name", None, shutil.copyfile)
    return (place / "README.md").read_text()


@pytest.mark.extensive
def test_a_run_has_its_costs_and_samples_on_the_card(run: Path, tmp_path: Path) -> None:
    text = card_of(run, tmp_path / "out")
    assert "## Cost\n" in text
    assert "| latency of one call, ms |" in text
    assert "![sheet.png](samples/sheet.png)" in text
    assert "license: openrail++" in text
    assert (tmp_path / "out" / "LICENSE").read_text() == "terms"


def evaluation(run: Path, kept: float) -> Evaluation:
    size = Measure(metric="parameters", original=1000, pruned=round(1000 * kept))
    return Evaluation(metrics=(size,), protocol={"samples": 5})


def test_an_evaluation_counts_only_if_it_is_of_the_plan(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, predicted = RunFolder(run), ldpruner.Plan.read(run).predicted
    assert predicted is not None
    folder.write_evaluation(evaluation(run, predicted.parameters))
    assert "samples 5" in card_of(run, tmp_path / "same")
    assert not caplog.messages
    folder.write_evaluation(evaluation(run, predicted.parameters - 0.1))
    assert "samples 5" not in card_of(run, tmp_path / "other")
    assert "of another plan" in caplog.messages[0]


def test_samples_and_costs_of_another_plan_are_left_out(run: Path, tmp_path: Path) -> None:
    comparison = RunFolder(run).comparison()
    assert comparison is not None
    first, second = comparison.pipelines
    other = comparison.replace(pipelines=(first, second.replace(parameters=first.parameters)))
    RunFolder(run).write_comparison(other)
    text = card_of(run, tmp_path / "out")
    assert "samples/" not in text
    assert "Not measured." in text
    assert not (tmp_path / "out" / "samples").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"rows": 3}', '{"rows": ["a"], "samples": [1]}'])
def test_a_damaged_sheet_of_samples_is_left_out(run: Path, tmp_path: Path, content: str) -> None:
    (run / "samples" / "samples.json").write_text(content)
    assert "## Samples" not in card_of(run, tmp_path / "out")


def test_a_plan_by_hand_beside_a_pruned_pipeline_is_enough(run: Path, tmp_path: Path) -> None:
    place = tmp_path / "bare"
    shutil.copytree(run / "pruned", place / "pruned")
    plan = ldpruner.Plan.read(run)
    ldpruner.Plan(removed=plan.removed).write(place / "plan.json")
    with pytest.raises(RunStoreError, match="--base-model"):
        Contents(place, None)
    contents = Contents(place, "owner/base")
    assert contents.component == "unet"
    assert contents.origin.hub_id == "owner/base"


def test_what_is_missing_names_the_command_that_makes_it(run: Path) -> None:
    shutil.rmtree(run / "pruned")
    with pytest.raises(PipelineNotFound, match="ldpruner prune"):
        Contents(run, None)


def test_a_configuration_keeps_all_but_the_local_folder_that_it_names(run: Path, tmp_path: Path) -> None:
    path = run / "pruned" / "vqvae" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "_name_or_path": str(tmp_path)}))
    card_of(run, tmp_path / "out")
    config.pop("_name_or_path", None)
    assert json.loads((tmp_path / "out" / "vqvae" / "config.json").read_text()) == config
    path.write_text(json.dumps({**config, "_name_or_path": "owner/name"}))
    card_of(run, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "vqvae" / "config.json").read_text())["_name_or_path"] == "owner/name"
