"""Pipelines of every family are scored, pruned, saved, and opened again without ldpruner."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

import ldpruner
from ldpruner.operators.discovery import Operator
from ldpruner.scoring.results import Scores
from ldpruner.scoring.runner import ScoringRun
from tests.families import FAMILIES, Family, unusual

# `make test-extensive` runs the others.
IN_DEFAULT_RUN = {
    *("dit", "wan-two-denoisers-2", "longcat-audio"),
}


pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own: deprecated classes, deprecated calls

# Samples from each folder that it reads, without ldpruner.
READER = """
import sys
sys.modules["ldpruner"] = None
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from tests.families import FAMILIES
for line in sys.stdin:
    name, folder = line.split()
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    save_file({"samples": FAMILIES[name].sample(pipeline).contiguous()}, f"{folder}/samples.safetensors")
    print("ready", name, flush=True)
"""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """A process without ldpruner."""
    modules = tmp_path_factory.mktemp("modules")
    process = subprocess.Popen(
        [sys.executable, "-c", READER],
        env={**os.environ, "HF_MODULES_CACHE": str(modules), "PYTHONPATH": str(Path.cwd())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.wait()


def probe_of(family: Family) -> ldpruner.Probe:
    return ldpruner.Probe(samples=2, steps=2, prompts=family.prompts, call=dict(family.call))


def two_of_each(operators: Sequence[Operator]) -> list[Operator]:
    """Two operators of each type and modification, and the largest, so that a budget can be reached."""
    seen: dict[tuple[str, str], int] = {}
    largest_first = sorted(operators, key=lambda operator: -operator.parameters)
    chosen = {operator.name for operator in largest_first[:10]}
    for operator in operators:
        for modification in operator.modifications:
            key = (operator.module_type, modification)
            seen[key] = seen.get(key, 0) + 1
            if seen[key] <= 2:
                chosen.add(operator.name)
    return [operator for operator in operators if operator.name in chosen]


def scored(pipeline: DiffusionPipeline, family: Family) -> Scores:
    probe = probe_of(family)
    operators = ldpruner.find_operators(pipeline, family.component, probe.arguments(pipeline, [0]))
    with ScoringRun(pipeline, two_of_each(operators), probe, component=family.component) as scoring:
        for _ in scoring:
            pass
        return scoring.scores()


def each_family() -> list[Any]:
    return [pytest.param(name, marks=list(_marks(name))) for name in FAMILIES]


def _marks(name: str) -> Iterator[pytest.MarkDecorator]:
    if name in unusual.FAMILIES:
        yield pytest.mark.case(name=name)
    if name not in IN_DEFAULT_RUN:
        yield pytest.mark.extensive


@pytest.mark.parametrize("name", each_family())
def test_a_family_is_pruned_and_opens_anywhere(name: str, reader: subprocess.Popen[str], tmp_path: Path) -> None:
    family = FAMILIES[name]
    # As a user has it: weights in a file lie elsewhere in memory, and the kernels then round differently.
    family.pipeline().save_pretrained(tmp_path / "original")
    pipeline = ldpruner.load(tmp_path / "original")
    before = family.sample(pipeline)
    scores = scored(pipeline, family)
    assert torch.equal(family.sample(pipeline), before)
    plan = ldpruner.select(scores, ldpruner.Budget(parameters=0.8))
    pruned = ldpruner.prune(pipeline, plan)
    ldpruner.save(pruned, tmp_path / "pruned")
    print(name, tmp_path / "pruned", file=cast(IO[str], reader.stdin), flush=True)
    expected = family.sample(pruned)
    assert cast(IO[str], reader.stdout).readline() == f"ready {name}\n"
    assert torch.equal(load_file(tmp_path / "pruned" / "samples.safetensors")["samples"], expected)
    assert torch.equal(family.sample(ldpruner.load(tmp_path / "pruned")), expected)
