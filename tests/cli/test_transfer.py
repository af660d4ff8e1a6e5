"""Commands that take a pruning elsewhere."""

import json
import shutil
from pathlib import Path

import pytest

import ldpruner
from ldpruner import Budget, Plan
from ldpruner.run_folder import RunFolder
from ldpruner.workflow import prune_run, select_run
from tests.cli.conftest import Run


@pytest.fixture(scope="module")
def place(scored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a pruned pipeline."""
    run = Path(shutil.copytree(scored, tmp_path_factory.mktemp("pruned") / "run"))
    select_run(run, Budget(parameters=0.8))
    prune_run(run)
    return run


@pytest.mark.case(number=51)
def test_apply_prunes_another_model_and_names_the_next_command(
    run: Run, folder: Path, place: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, text, err = run("apply", place / "plan.json", folder, "--out", out, "--dry-run", "--json")
    dry = json.loads(text)
    assert (code, out.exists()) == (0, False), err
    code, text, err = run("apply", place, folder, "--out", out, "--json")
    assert code == 0, err
    assert json.loads(text) == dry
    assert dry["component"] == "unet"
    assert dry["parameters"] / dry["original_parameters"] <= 0.8
    assert type(ldpruner.load(out).unet).__name__ == "PrunedUNet2DModel"
    lines = run("apply", place, folder, "--out", out)[1].splitlines()
    assert f"{dry['removals']} removals in unet of {folder} (UNet2DModel) leave" in lines[0]
    assert lines[-1] == f"next: ldpruner bench {folder} {out}"


def test_apply_names_a_single_removal_of_a_plan_by_hand(run: Run, folder: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text('{"removed": [{"removal": {"operator": "mid_block", "modification": "identity"}}]}')
    code, text, err = run("apply", plan, folder, "--out", tmp_path / "out", "--dry-run")
    assert code == 0, err
    assert text.startswith(f"1 removal in unet of {folder} (UNet2DModel) leaves")


def test_apply_says_that_latencies_were_measured_elsewhere(
    run: Run, folder: Path, scored: Path, tmp_path: Path
) -> None:
    select_run(place := Path(shutil.copytree(scored, tmp_path / "run")), Budget(latency=0.8))
    plan = Plan.read(place)
    assert plan.machine is not None
    plan.replace(machine=plan.machine.replace(device="NVIDIA H200", threads=None)).write(place / "plan.json")
    code, out, err = run("apply", place, folder, "--out", tmp_path / "out")
    assert code == 0, err
    assert "measured on NVIDIA H200" in out.splitlines()[1]


def test_diff_says_what_two_plans_remove_differently(run: Run, place: Path, scored: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(scored, tmp_path / "other"))
    select_run(other, Budget(parameters=0.6))
    code, out, err = run("diff", place, other / "plan.json", "--json")
    answer = json.loads(out)
    assert code == 0, err
    assert answer["first"]["predicted"]["parameters"] > answer["second"]["predicted"]["parameters"]
    assert answer["only_second"]
    code, out, err = run("diff", place, other)
    assert code == 0, err
    assert f"{len(answer['only_second'])} only in the second" in out.splitlines()[0]
    assert any(line.split()[:3] == ["parameters", "left,", "predicted"] for line in out.splitlines())
    assert all(extra["planned"]["removal"]["operator"] in out for extra in answer["only_second"])
    same = run("diff", place, place)[1]
    assert same.startswith("both plans make the same")


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (("apply", "NOWHERE", "MODEL", "--out", "OUT"), 1, "no plan at"),
        (("apply", "PLAN", "NOWHERE", "--out", "OUT"), 1, "no pipeline at"),
        (("apply", "PLAN", "MODEL"), 2, "--out"),
        (("diff", "PLAN", "MODEL"), 1, "no plan at"),
        (("diff", "PLAN"), 2, "second"),
        (("push", "--run", "PLAN", "--repo", "a/b", "--out", "OUT"), 2, "--dry-run"),
        (("push", "--run", "PLAN", "--repo", "a b", "--dry-run"), 1, "'a b' is no repository"),
        (("push", "--run", "EMPTY", "--repo", "a/b", "--dry-run"), 1, "no pruned pipeline"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    run: Run, place: Path, tmp_path: Path, words: tuple[str, ...], code: int, problem: str
) -> None:
    places = {"PLAN": place, "MODEL": RunFolder(place).model(), "NOWHERE": tmp_path / "none", "OUT": tmp_path / "out"}
    places["EMPTY"] = tmp_path / "empty"
    given, out, err = run(*(places.get(word, word) for word in words), "--quiet")
    assert (given, out, err.count("\n")) == (code, "", 1)
    assert err.startswith("error: ")
    assert problem in err
