"""A place with a model, a run and data to be damaged, and what every command has to leave as it was."""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from ldpruner import Budget, Probe
from ldpruner.pruning.opening import open_pipeline
from ldpruner.workflow import prune_run, score_run, select_run
from tests.cli.conftest import Run, log_as_before, run

__all__ = ["Run", "log_as_before", "run"]

# Always the same inputs, so that a change is judged by the same tests each time.
settings.register_profile(
    "campaign", derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("campaign")

PROBE = Probe(samples=2, steps=2)


def sizes(quick: int, extensive: int) -> pytest.MarkDecorator:
    """How many inputs a test tries: a few in `make test`, many in `make test-extensive`."""
    return pytest.mark.parametrize("inputs", [quick, pytest.param(extensive, marks=pytest.mark.extensive)])


@dataclass(frozen=True)
class Place:
    """A folder with `model`, `run` (scored, pruned), `data` (pictures with metadata) and `recipe.yaml`."""

    path: Path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def files(self, but: Path | None = None) -> dict[str, str]:
        """All files with digests of their contents, those under a folder left out."""
        paths = (path for path in sorted(self.path.rglob("*")) if but is None or not path.is_relative_to(but))
        return {str(path): _digest(path) for path in paths}


def _digest(path: Path) -> str:
    if path.is_symlink():
        return os.readlink(path)  # noqa: PTH115  (resolves nothing)
    return hashlib.blake2b(path.read_bytes()).hexdigest() if path.is_file() else "folder"


@pytest.fixture(scope="session")
def template(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """What each damaged place is copied from; not to be changed."""
    path = tmp_path_factory.mktemp("template") / "place"
    shutil.copytree(folder, path / "model")
    score_run(open_pipeline(folder), run=path / "run", probe=PROBE, model=str(folder), budgets=None)
    select_run(path / "run", Budget(parameters=0.8))
    prune_run(path / "run")
    (path / "data").mkdir()
    random = np.random.default_rng(0)
    for index, ending in enumerate(("png", "jpg", "webp", "bmp", "png", "png")):
        pixels = random.integers(0, 256, (12, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / "data" / f"{index}.{ending}")
    return Place(path)


@pytest.fixture
def places(template: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Place]:
    """Gives a new copy each time; commands run there."""
    path = tmp_path / "place"
    path.mkdir()

    def make() -> Place:
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(path)
        shutil.copytree(template.path, path, symlinks=True)
        monkeypatch.chdir(path)
        return Place(path)

    return make
