"""`ldpruner finetune`."""

import json
import subprocess
import sys
from pathlib import Path

import ldpruner
from ldpruner.pipelines.running import networks


def test_a_run_is_finetuned(folder: Path, tmp_path: Path) -> None:
    def ldprune(*arguments: str) -> str:
        command = [sys.executable, "-m", "ldpruner", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    run = str(tmp_path / "run")
    ldprune("run", str(folder), "--run", run, "--budget", "parameters=0.7", "--samples", "2", "--steps", "3")
    training = "max_train_steps=3,train_batch_size=2"
    answer = json.loads(ldprune("finetune", "--run", run, "--samples", "8", "--training", training, "--json"))
    assert answer["steps"] == 3
    recovered = ldpruner.load(tmp_path / "run" / "recovered")
    assert type(networks(recovered)["unet"]).__name__ == "PrunedUNet2DModel"
