"""Finished runs, and one with names from outside that would be markup."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.run_folder import RunFolder
from ldpruner.scoring.store import RunStore
from ldpruner.workflow import prune_run, score_run, select_run
from tests.publishing.conftest import finished, run

__all__ = ["finished", "run"]

HOSTILE = "<script>alert(1)</script> \"quoted\" 'too' & [/] {{ 7 * 7 }}"


@pytest.fixture
def hostile(run: Path) -> Path:
    """The run with a hostile model, a hostile operator that is removed, and hostile prompts."""
    folder = RunFolder(run)
    sheet, plan = folder.samples / "samples.json", json.loads(folder.plan_file.read_text())
    content = json.loads(sheet.read_text())
    for sample in content["samples"]:
        sample["prompt"] = HOSTILE
    sheet.write_text(json.dumps(content))
    operator = folder.plan().removed[0].operator
    folder.plan_file.write_text(json.dumps(_renamed(plan, operator)))
    with RunStore(run, {}) as store:
        store.set_fact("scores", _renamed(store.fact("scores"), operator))
        store.set_fact("model", HOSTILE)
    return run


def _renamed(value: Any, operator: str) -> Any:
    """A JSON value with a hostile name for an operator."""
    if isinstance(value, dict):
        pairs = ((key, _renamed(part, operator)) for key, part in value.items())
        return {key: HOSTILE if key == "operator" and part == operator else part for key, part in pairs}
    return [_renamed(part, operator) for part in value] if isinstance(value, list) else value


@pytest.fixture(scope="session")
def text_run(tiny_text: DiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a text-to-image pipeline, with a recovered one whose weights moved; not to be changed."""
    place = tmp_path_factory.mktemp("live")
    model = place / "<b>original"
    tiny_text.save_pretrained(model)
    original, run = ldpruner.load(model), place / "run"
    probe = ldpruner.Probe(samples=2, steps=2, prompts=["a cat on the moon", "the sea"])
    score_run(original, run=run, probe=probe, model=str(model), targets=["mid_block*"], budgets=None)
    select_run(run, ldpruner.Budget(operators=1))
    prune_run(run, original=original)
    recovered = ldpruner.load(run / "pruned")
    with torch.no_grad():
        recovered.unet.conv_out.weight += 0.05
    ldpruner.save(recovered, run / "recovered")
    return run
