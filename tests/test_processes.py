"""Commands that are killed at any instant, and commands that share a run folder: nothing is lost or broken."""

import itertools
import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import ldpruner
from ldpruner import cli
from ldpruner.run_folder import RunFolder

pytestmark = pytest.mark.extensive

KILLS = 20  # of each command
FEW = ("--samples", "8", "--steps", "2")
TRAINING = ("--samples", "8", "--max-train-steps", "6", "--train-batch-size", "2", "--lr-warmup-steps", "0")
ARGUMENTS = {  # of each command, after the model and the run folder
    "score": FEW,
    "select": ("--budget", "parameters=0.7"),
    "prune": (),
    "run": (*FEW, "--budget", "parameters=0.6"),
    "finetune": (*TRAINING, "--validation-steps", "2", "--checkpointing-steps", "1"),
    "evaluate": ("--samples", "8"),
}
PAIRS = list(itertools.product(ARGUMENTS, repeat=2))
Start = Callable[..., ForkServerProcess]


def command(line: list[str], output: Path) -> None:
    """Runs a command line in this process; all that it prints goes to a file."""
    torch.set_num_threads(1)
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["ldpruner", *line]
    sys.exit(cli.main())


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    """Processes are forked from one that has imported everything, and started no thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_processes"])
    return context


@pytest.fixture(scope="module")
def start(server: ForkServerContext, folder: Path) -> Start:
    """Starts a command on a run folder."""

    def started(name: str, run: Path, output: Path) -> ForkServerProcess:
        model = [str(folder)] if name in ("score", "run") else []
        line = [name, *model, "--run", str(run), *ARGUMENTS[name], "--quiet"]
        process = server.Process(target=command, args=(line, output))
        process.start()
        return process

    return started


@pytest.fixture(scope="module")
def pruned(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with scores, a plan and a pruned pipeline; not to be changed."""
    run = tmp_path_factory.mktemp("processes") / "pruned"
    for name in ("score", "select", "prune"):
        process = start(name, run, run.with_name("output"))
        process.join()
        assert process.exitcode == 0, run.with_name("output").read_text()
    return run


def assert_whole(run: Path) -> None:
    """Everything in a run folder can be read."""
    folder = RunFolder(run)
    if folder.plan_file.exists():
        folder.plan()
    for pipeline in (folder.pruned, folder.recovered):
        if pipeline.exists():
            ldpruner.load(pipeline)
    if folder.evaluation_file.exists():
        json.loads(folder.evaluation_file.read_text())


@pytest.mark.case(number=5)
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_the_second_of_two_commands_waits_or_is_refused(
    start: Start, pruned: Path, tmp_path: Path, pair: tuple[str, str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(pruned, run)
    outputs = [tmp_path / "first", tmp_path / "second"]
    processes = [start(pair[0], run, outputs[0])]
    time.sleep(random.Random("".join(pair)).uniform(0, 2))
    processes.append(start(pair[1], run, outputs[1]))
    for process, output in zip(processes, outputs, strict=True):
        process.join()
        refusal = [line for line in output.read_text().splitlines() if line.startswith("error: ")]
        assert process.exitcode == len(refusal), output.read_text()
        assert all("another process is writing" in line for line in refusal)
    assert {process.exitcode for process in processes} <= {0, 1}
    assert 0 in {process.exitcode for process in processes}
    assert_whole(run)
    for name in pair:
        again = start(name, run, outputs[0])
        again.join()
        assert again.exitcode == 0, outputs[0].read_text()
    assert_whole(run)


def result_of(name: str, run: Path) -> Any:
    """What a command leaves in its run folder, without timings."""
    if name == "run":
        return [planned.operator for planned in RunFolder(run).plan().removed], RunFolder(run).scores().denoiser_calls
    if name == "finetune":
        (weights,) = (run / "recovered" / "unet").glob("*.safetensors")
        return {key: tensor.tolist() for key, tensor in safetensors.torch.load_file(weights).items()}
    metrics = json.loads((run / "evaluation.json").read_text())["metrics"]
    return [measure for measure in metrics if not measure["metric"].startswith("latency")]


@pytest.mark.parametrize("name", ["run", "finetune", "evaluate"])
def test_a_command_that_is_killed_comes_to_the_same_result(
    start: Start, pruned: Path, tmp_path: Path, name: str
) -> None:
    whole, run, output = tmp_path / "whole", tmp_path / "run", tmp_path / "output"
    for copied in (whole, run):
        shutil.copytree(pruned, copied) if name != "run" else copied.mkdir()
    began = time.monotonic()
    process = start(name, whole, output)
    process.join()
    duration = time.monotonic() - began
    assert process.exitcode == 0, output.read_text()
    instants = random.Random(name)
    for _ in range(KILLS):
        process = start(name, run, output)
        process.join(instants.uniform(0, duration))
        process.kill()
        process.join()
        assert_whole(run)
    process = start(name, run, output)
    process.join()
    assert process.exitcode == 0, output.read_text()
    assert result_of(name, run) == result_of(name, whole)
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []
