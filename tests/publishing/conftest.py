"""A finished run of the tiny pipeline, and a Hub of its own."""

import shutil
from pathlib import Path

import pytest

import ldpruner
from ldpruner.pruning.opening import open_pipeline
from tests.hub_server import hub

__all__ = ["hub"]

CARD = "---\nlicense: openrail++\nlicense_link: https://example.org/terms\n---\n# The original\n"


@pytest.fixture(scope="session")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a plan, a pruned pipeline, its costs and samples; not to be changed."""
    place = tmp_path_factory.mktemp("finished")
    original = Path(shutil.copytree(folder, place / "original"))
    (original / "README.md").write_text(CARD)
    (original / "LICENSE").write_text("terms")
    probe, budget = ldpruner.Probe(samples=2, steps=2), ldpruner.Budget(parameters=0.9)
    options = {"probe": probe, "model": str(original), "targets": ["mid_block*", "down_blocks*"]}
    ldpruner.run(open_pipeline(original, "cpu"), budget, run=place / "run", **options)  # type: ignore[arg-type]
    return place / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))
