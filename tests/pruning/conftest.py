"""What the tests of pruning share: a pruned tiny pipeline, in memory and on disk."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.operators.discovery import Candidate
from ldpruner.pipelines.sampling import sample_latents
from tests.conftest import planned

PROBE = ldpruner.Probe(samples=2, steps=2)


def some_plan(pipeline: DiffusionPipeline) -> ldpruner.Plan:
    """Removals of every modification that the pipeline allows, no two inside one another."""
    chosen: list[Candidate] = []
    for operator in ldpruner.find_operators(pipeline):
        (candidate,) = operator.candidates
        alike = [other for other in chosen if other.modification == candidate.modification]
        is_free = all(set(candidate.leaves).isdisjoint(other.leaves) for other in chosen)
        runs = operator.name != "transformer_blocks.0"  # DiT reads this block's norm from outside
        if len(alike) < 3 and is_free and runs and candidate.parameters:
            chosen.append(candidate)
    return ldpruner.Plan(removed=tuple(map(planned, chosen)))


def pruned_copy(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    return ldpruner.prune(pipeline, some_plan(pipeline))


def latents(pipeline: DiffusionPipeline) -> torch.Tensor:
    probe = PROBE.replace(prompts=("a cat", "the sea")) if "text_encoder" in pipeline.components else PROBE
    return sample_latents(pipeline, probe, range(probe.samples))


@pytest.fixture(scope="module")
def pruned(tiny: DiffusionPipeline) -> DiffusionPipeline:
    return pruned_copy(tiny)


@pytest.fixture(scope="module")
def saved(pruned: DiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pruned tiny pipeline on disk; not to be changed."""
    path = tmp_path_factory.mktemp("pruned") / "pipeline"
    ldpruner.save(pruned, path)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_one_line(error: BaseException, *parts: str) -> None:
    message = str(error)
    assert "\n" not in message
    assert all(part in message for part in parts), message
