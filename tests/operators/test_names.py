"""Dotted names are compared by containment."""

from ldpruner.operators.names import ancestors, by_ancestor, overlap


def test_modules_overlap_if_one_contains_the_other() -> None:
    assert overlap("blocks", "blocks.1")
    assert overlap("blocks.1", "blocks.1")
    assert not overlap("blocks.1", "blocks.10")


def test_names_are_grouped_by_each_of_their_ancestors() -> None:
    assert ancestors("a.b.c") == ["a", "a.b", "a.b.c"]
    assert by_ancestor(["a.b", "a.c"]) == {"a": ["a.b", "a.c"], "a.b": ["a.b"], "a.c": ["a.c"]}
