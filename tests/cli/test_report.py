"""The command `report`."""

import json
import shutil
from pathlib import Path

from tests.cli.conftest import Run


def test_a_plan_is_enough_for_a_page(run: Run, scored: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(scored, tmp_path / "run"))
    code, _, err = run("report", "--run", place)
    assert code == 1
    assert "make one with 'ldpruner select'" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert run("select", "--run", place, "--budget", "parameters=0.8")[0] == 0
    code, out, err = run("report", "--run", place, "--json")
    assert code == 0, err
    assert json.loads(out) == {"report": str(place / "report.html")}
    assert "It was not timed" in (place / "report.html").read_text(encoding="utf-8")


def test_the_file_has_another_place(run: Run, scored: Path, tmp_path: Path) -> None:
    code, out, _ = run("report", "--run", scored, "--out", tmp_path / "page.html", "--dry-run")
    assert code == 0
    assert json.loads(out) == {"runs": [str(scored)], "out": str(tmp_path / "page.html")}
    assert not (tmp_path / "page.html").exists()


def test_no_run_is_one_line(run: Run) -> None:
    code, _, err = run("report")
    assert code == 2
    assert "name a run folder" in err


def test_several_runs_are_one_page(run: Run, scored: Path, tmp_path: Path) -> None:
    code, out, _ = run("report", scored, "--run", scored, "--dry-run")
    assert code == 0
    assert json.loads(out)["runs"] == [str(scored)] * 2
    code, _, err = run("report", scored, scored, "--out", tmp_path / "page.html")
    assert code == 1
    assert "nothing was measured" in err.splitlines()[-1]
