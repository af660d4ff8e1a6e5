"""The committed figures are those of the committed records and of the package's layers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import figures
from benchmarks.records import ROOT


def test_the_committed_layers_are_those_of_the_package() -> None:
    text = (figures.FIGURES / "layers.svg").read_text(encoding="utf-8")
    assert text == figures.layers_svg(), "run python -m benchmarks.figures"
    assert ["selection"] in list(figures.layers())


def test_layers_list_modules_that_exist() -> None:
    package = ROOT / "src" / "ldpruner"
    names = [name for layer in figures.layers() for name in layer]
    assert not [name for name in names if not (package / name).exists() and not (package / f"{name}.py").exists()]


@pytest.mark.parametrize("plot", [figures._depth, figures._savings])
def test_a_figure_has_a_point_for_each_modification(plot: Callable[[Axes], None]) -> None:
    axes = Figure().subplots()
    plot(axes)
    points = np.concatenate([np.asarray(collection.get_offsets()) for collection in axes.collections])
    assert len(points) == len(figures._modifications()) + len(figures._removed())
    assert np.isfinite(points).all()


def test_all_figures_are_committed(tmp_path: Path) -> None:
    figures.plot_all(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} | {"removals.png"} == {
        path.name for path in figures.FIGURES.iterdir()
    }


def test_each_operator_of_the_pictures_was_scored() -> None:
    scored = {row["removal"]["operator"] for row in figures._modifications()}
    assert set(figures.SHOWN) <= scored
