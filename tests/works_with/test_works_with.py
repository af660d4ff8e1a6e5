"""What docs/works-with.md says of pruned pipelines is what is seen."""

import pytest

from tests.works_with.table import mark, read
from tests.works_with.things import THINGS
from tests.works_with.trial import NAMES, outcome

QUICK = ("Flux",)  # in the default tests
SLOW = ("torch.compile, fullgraph", "torch.export", "ONNX Runtime", "OpenVINO")  # tested on their own


def test_the_table_has_a_cell_for_every_thing_and_family() -> None:
    assert read().keys() == {(thing, name) for thing in THINGS for name in NAMES}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.extensive) for name in NAMES]
)
@pytest.mark.parametrize("thing", [thing for thing in THINGS if thing not in SLOW])
def test_a_thing_works_as_the_table_says(thing: str, name: str) -> None:
    use, is_lossy = THINGS[thing]
    assert mark(outcome(use, name, is_lossy=is_lossy)) == read()[thing, name]
