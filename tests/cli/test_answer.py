"""Answers: JSON or lines, hints or none, and what the libraries may say."""

import json
import logging
import os

import pytest

from ldpruner.cli.answer import Answer, command, quiet_libraries, settings, show
from ldpruner.cli.console import Table, terminal
from tests.cli.conftest import Run

ANSWER = Answer({"figure": 1}, ["one is the figure", Table(("a",), [("1",)])], "ldpruner demo")


def test_people_read_the_result_first_and_the_next_command_last(capsys: pytest.CaptureFixture[str]) -> None:
    show(ANSWER, as_json=False)
    assert capsys.readouterr().out.splitlines() == ["one is the figure", "a", "1", "next: ldpruner demo"]


def test_json_is_the_data_alone(capsys: pytest.CaptureFixture[str]) -> None:
    show(ANSWER, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"figure": 1}


def test_what_goes_on_comes_after_the_answer(capfd: pytest.CaptureFixture[str]) -> None:
    printed: list[str] = []

    def serving() -> Answer:
        return Answer({"port": 1}, ["at port 1"], wait=lambda: printed.append(capfd.readouterr().out))

    command(serving)(as_json=True, quiet=False, verbose=False)
    assert printed == ['{"port": 1}\n']


def test_a_dry_run_answers_in_json_in_any_case(capsys: pytest.CaptureFixture[str]) -> None:
    show(settings(model="m", component=None), as_json=False)
    assert json.loads(capsys.readouterr().out) == {"model": "m"}


def test_quiet_leaves_one_line(run: Run, folder: str) -> None:
    code, out, err = run("operators", folder, "--quiet")
    assert (code, err) == (0, "")
    lines = run("operators", folder)[1].splitlines()
    assert out.splitlines() == lines[:1]
    assert lines[-1].startswith("next: ldpruner score")


def test_only_verbose_shows_the_log_of_the_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    for verbose in (False, True):
        terminal.configure(quiet=False, verbose=verbose)
        logging.getLogger("diffusers_of_a_test").warning("chatter")
        seen.append("chatter" in capsys.readouterr().err)
    terminal.configure(quiet=False, verbose=False)
    assert seen == [False, True]


def test_libraries_report_errors_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        monkeypatch.delenv(f"{library}_VERBOSITY", raising=False)
    quiet_libraries(verbose=True)
    assert "TRANSFORMERS_VERBOSITY" not in os.environ
    quiet_libraries(verbose=False)
    assert os.environ["DIFFUSERS_VERBOSITY"] == os.environ["TRANSFORMERS_VERBOSITY"] == "error"
