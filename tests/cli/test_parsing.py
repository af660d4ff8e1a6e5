"""What the words of a command line mean."""

from pathlib import Path

import pytest
import typer
from PIL import Image

from ldpruner import Budget, LdPrunerError, Probe
from ldpruner.cli import parsing
from tests.cli.conftest import Run


def test_arguments_of_the_call_are_json_where_they_are() -> None:
    words = ["height=256", "eta=0.5", "negative_prompt=a cat", "size=[1, 2]", "flag=true", "deep=[[[["]
    values = {"height": 256, "eta": 0.5, "negative_prompt": "a cat", "size": [1, 2], "flag": True, "deep": "[[[["}
    assert parsing.call_arguments(words) == values


def test_an_image_argument_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4), "red").save(path)
    (image,) = parsing.call_arguments([f"image={path}"]).values()
    assert image.size == (4, 4)
    with pytest.raises(LdPrunerError, match=r"image='nowhere\.png'"):
        parsing.call_arguments(["image=nowhere.png"])


def test_a_budget_is_repeated_or_separated_by_commas() -> None:
    assert parsing.budget_of(["latency=0.5", "macs=0.9"]) == parsing.budget_of(["latency=0.5,macs=0.9"])
    assert parsing.budget_of(["operators=3"]) == Budget(operators=3)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["latency=0.5", "latency=0.9"], "given twice"),
        (["latency=0.5,latency=0.9"], "given twice"),
        (["latency"], "name=value"),
        (["=0.5"], "name=value"),
    ],
)
def test_a_budget_that_is_not_clear_is_refused(words: list[str], problem: str) -> None:
    with pytest.raises(typer.BadParameter, match=problem):
        parsing.budget_of(words)


@pytest.mark.parametrize("word", ["latency=true", "latency=small", "speed=2", "latency=1.5", "latency=[1]"])
def test_a_budget_of_a_wrong_value_is_refused(word: str) -> None:
    with pytest.raises(LdPrunerError, match=word.partition("=")[0]):
        parsing.budget_of([word])


def test_a_runs_probe_keeps_what_is_not_changed(tmp_path: Path) -> None:
    known = Probe(samples=3, steps=4, prompts=("a",), call={"eta": 0.1})
    (tmp_path / "p.txt").write_text("b\nc\n")
    assert parsing.changed(known, 5, None, None) == known.replace(samples=5)
    changed = parsing.changed(known, 5, tmp_path / "p.txt", ["height=8"])
    assert (changed.prompts, changed.call, changed.steps) == (("b", "c"), {"eta": 0.1, "height": 8}, 4)


@pytest.mark.case(number=11)
@pytest.mark.parametrize(
    "words",
    [
        ("score", "m", "--run", "r", "--budget", "macs=0.5", "--exhaustive"),
        ("score", "m", "--run", "r", "--tflops", "3"),
        ("score", "m", "--run", "r", "--ray-address", "here"),
        ("score", "m", "--run", "r", "--ray-address", "here", "--dry-run"),
        ("run", "m", "--run", "r", "--budget", "macs=0.5", "--ray-address", "here", "--dry-run"),
        ("operators", "m", "--sort", "name"),
        ("finetune", "--run", "r", "--data", "d", "--samples", "5"),
        ("finetune", "--run", "r", "--data", "d", "--prompts", "p.txt"),
        ("recipe", "r.yaml", "--tflops", "3"),
        ("recipe", "r.yaml", "--config", "c"),
        ("recipe", "r.yaml", "--dry-run", "--only", "prune"),
    ],
    ids=" ".join,
)
def test_an_option_that_would_be_ignored_is_one_line(run: Run, words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "has no effect" in err


def test_height_and_width_are_arguments_of_the_call() -> None:
    probe = parsing.probe_of(height=16, width=32, pipeline_arg=["eta=0.5"])
    assert probe.call == {"eta": 0.5, "height": 16, "width": 32}
    with pytest.raises(typer.BadParameter, match="--height and --pipeline-arg height are given; choose one"):
        parsing.probe_of(height=16, width=16, pipeline_arg=["height=8"])


def test_a_size_of_a_pipeline_without_one_is_refused_in_one_line(run: Run, folder: Path) -> None:
    code, out, err = run("score", folder, "--run", "new", "--height", "16", "--width", "16")
    assert (code, out) == (1, "")
    assert "takes no argument 'height'" in err.splitlines()[-1]
