"""Dotted names are matched by glob patterns and compared by containment."""

import pytest
from torch import nn

from ldpruner.errors import OperatorNotFound
from ldpruner.operators.names import ancestors, by_ancestor, matching_modules, overlap

NETWORK = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(1, 1), nn.SiLU()]), "norm": nn.LayerNorm(1)})


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("norm", {"norm"}),
        ("*o*", {"norm", "blocks", "blocks.0", "blocks.1"}),
        (["blocks.?", "norm"], {"blocks.0", "blocks.1", "norm"}),
        ((), set()),
    ],
)
def test_a_pattern_matches_whole_dotted_names(patterns: str | list[str], expected: set[str]) -> None:
    assert matching_modules(NETWORK, patterns) == expected


@pytest.mark.parametrize("pattern", ["blocks.2", "Norm", "norm.", ""])
def test_a_pattern_that_matches_nothing_is_refused_in_one_line(pattern: str) -> None:
    with pytest.raises(OperatorNotFound) as caught:
        matching_modules(NETWORK, ["norm", pattern])
    assert repr(pattern) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_modules_overlap_if_one_contains_the_other() -> None:
    assert overlap("blocks", "blocks.1")
    assert overlap("blocks.1", "blocks.1")
    assert not overlap("blocks.1", "blocks.10")


def test_names_are_grouped_by_each_of_their_ancestors() -> None:
    assert ancestors("a.b.c") == ["a", "a.b", "a.b.c"]
    assert by_ancestor(["a.b", "a.c"]) == {"a": ["a.b", "a.c"], "a.b": ["a.b"], "a.c": ["a.c"]}
