"""What a run folder holds."""

import json
import shutil
from pathlib import Path

import pytest

from ldpruner.errors import LdPrunerError, StorageError
from ldpruner.evaluation.evaluate import Evaluation
from ldpruner.run_folder import RunFolder
from ldpruner.scoring.store import RunStore


def write_pipeline(folder: Path, config: object) -> None:
    (folder / "unet").mkdir(parents=True)
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "unet" / "config.json").write_text(text)


def test_a_recovered_pipeline_counts_while_it_is_of_the_pruned_one(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_pipeline(run.pruned, {"removals": [1], "_name_or_path": "a"})
    assert run.latest() == run.pruned
    write_pipeline(run.recovered, {"removals": [1], "_name_or_path": "b"})
    assert run.latest() == run.recovered
    shutil.rmtree(run.pruned)
    write_pipeline(run.pruned, {"removals": [2]})
    assert run.latest() == run.pruned


def test_a_native_pruned_pipeline_without_removals_is_recognised_too(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_pipeline(run.pruned, {"num_layers": 2})
    assert run.latest() == run.pruned
    write_pipeline(run.recovered, {"num_layers": 3})
    assert run.latest() == run.pruned


@pytest.mark.parametrize("config", ["{", '"removals"', "[]", "[" * 100_000, b"\xff".decode("latin-1")])
def test_a_broken_configuration_is_one_line(tmp_path: Path, config: str) -> None:
    run = RunFolder(tmp_path)
    write_pipeline(run.pruned, config)
    write_pipeline(run.recovered, config)
    with pytest.raises(LdPrunerError, match="prune again"):
        run.latest()


def test_what_is_not_there_names_the_command_that_makes_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for ask, command in (
        (run.scores, "score"),
        (run.model, "score"),
        (run.plan, "select"),
        (run.check_pruned, "prune"),
    ):
        with pytest.raises(LdPrunerError, match=f"ldpruner {command}"):
            ask()


def test_scores_of_another_version_are_one_line(tmp_path: Path) -> None:
    with RunStore(tmp_path, {}) as store:
        store.set_fact("scores", {"colour": 3})
        store.set_fact("model", "m")
    run = RunFolder(tmp_path)
    assert run.model() == "m"
    with pytest.raises(LdPrunerError, match="score again"):
        run.scores()


@pytest.mark.case(number=3)
def test_a_link_in_place_of_the_pruned_pipeline_is_refused_before_the_work(tmp_path: Path) -> None:
    original, run = tmp_path / "original", RunFolder(tmp_path / "run")
    write_pipeline(original, {})
    run.path.mkdir()
    run.pruned.symlink_to(original)
    with pytest.raises(StorageError, match="is a link to"), run.writing(run.pruned):
        raise AssertionError
    with run.writing(run.recovered):
        pass


def test_an_evaluation_names_the_pipeline_that_it_is_of(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_pipeline(run.pruned, {})
    run.write_evaluation(Evaluation(metrics=(), protocol={"samples": 3}))
    written = json.loads(run.evaluation_file.read_text())
    assert written == {"pipeline": "pruned", "metrics": [], "by_category": {}, "protocol": {"samples": 3}}
