"""Several pipelines side by side: each cell is of its pipeline, and what does not compare is said."""

import json
import re
import shutil
from pathlib import Path

import pytest

from ldpruner import write_report
from ldpruner.errors import RunStoreError
from ldpruner.evaluation.evaluate import Evaluation
from ldpruner.evaluation.measures import Measure
from ldpruner.report.comparison import compare_runs
from ldpruner.report.contents import gather
from ldpruner.run_folder import Alternative, RunFolder
from tests.report.conftest import HOSTILE
from tests.report.test_page import Page


def evaluation(distance: float, ratio: float, **protocol: object) -> Evaluation:
    measures = [
        Measure(metric="latency_ratio", original=1, pruned=ratio, interval=(ratio, ratio)),
        Measure(metric="macs", original=200, pruned=round(200 * ratio)),
        Measure(metric="frechet_distance", original=1.0, pruned=distance, interval=(distance, 9.0), noise_floor=0.1),
    ]
    return Evaluation(metrics=tuple(measures), protocol={"samples": 8, **protocol})


@pytest.fixture
def runs(run: Path, tmp_path: Path) -> list[Path]:
    """Two runs of one original, evaluated."""
    other = Path(shutil.copytree(run, tmp_path / "other"))
    RunFolder(run).write_evaluation(evaluation(2.0, 0.5))
    RunFolder(other).write_evaluation(evaluation(3.0, 0.25))
    return [run, other]


def test_each_run_has_its_column(runs: list[Path]) -> None:
    contents = compare_runs(runs)
    assert contents.names == tuple(f"{run}, pruned" for run in runs)
    costs, qualities = ({name: cells for name, *cells in rows} for rows in (contents.costs, contents.qualities))
    assert costs["latency ratio"] == ["100 %", "50 % (50 % to 50 %)", "25 % (25 % to 25 %)"]
    assert costs["MACs"] == ["200", "100 (50 %)", "50 (25 %)"]
    assert qualities["Fréchet distance"] == ["1", "2 (2 to 9; worse)", "3 (3 to 9; worse)"]
    assert contents.warnings == ()
    assert contents.chart is not None
    assert [mark.text for mark in contents.chart.marks] == list(contents.names)
    assert [list(sample.media) for sample in contents.samples] == [["original", *contents.names]] * 2
    assert [(removed.count, removed.alone) for removed in contents.removed] == [
        (len(RunFolder(run).plan().removed), ()) for run in runs
    ]


def test_qualities_that_were_measured_in_another_way_do_not_compare(runs: list[Path]) -> None:
    RunFolder(runs[1]).write_evaluation(evaluation(3.0, 0.25, features="inception"))
    (warning,) = compare_runs(runs).warnings
    assert "do not compare" in warning
    assert "features" in warning


def test_samples_of_other_seeds_are_left_out(runs: list[Path]) -> None:
    sheet = runs[1] / "samples" / "samples.json"
    sheet.write_text(re.sub(r'"seed": *', '"seed": 1', sheet.read_text()))
    contents = compare_runs(runs)
    assert [list(sample.media) for sample in contents.samples] == [["original", contents.names[0]]] * 2
    assert "are not shown" in contents.warnings[0]


def test_the_first_samples_are_compared_where_one_run_has_more(runs: list[Path]) -> None:
    sheet = runs[1] / "samples" / "samples.json"
    content = json.loads(sheet.read_text())
    sheet.write_text(json.dumps({**content, "samples": content["samples"][:1]}))
    contents = compare_runs(runs)
    assert [list(sample.media) for sample in contents.samples] == [["original", *contents.names]]
    assert contents.warnings == ()


def test_alternatives_stand_beside_the_run(run: Path) -> None:
    folder = RunFolder(run)
    assert gather(run).alternatives is None
    folder.write_evaluation(evaluation(2.0, 0.5))
    folder.write_alternatives([Alternative(name=HOSTILE, evaluation=evaluation(4.0, 0.6))])
    alternatives = gather(run).alternatives
    assert alternatives is not None
    assert alternatives.names == (f"{run}, pruned", f"original, {HOSTILE}")
    text = write_report(run).read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert f"original, {HOSTILE}" in Page(text).text


def test_the_page_of_several_is_one_file(runs: list[Path], tmp_path: Path) -> None:
    path = write_report(runs, tmp_path / "page.html")
    page = Page(path.read_text(encoding="utf-8"))
    addresses = [value for name, value in page.attributes if name in ("src", "href")]
    assert len(addresses) == 2 * 3
    assert all(address.startswith("data:") for address in addresses)


def test_a_run_of_which_nothing_was_measured_is_one_line(run: Path) -> None:
    (run / "comparison.json").unlink()
    with pytest.raises(RunStoreError, match="nothing was measured in"):
        compare_runs([run])
    (run / "alternatives.json").write_text(json.dumps({"alternatives": 3}))
    with pytest.raises(RunStoreError, match="evaluate --alternatives again"):
        gather(run)
