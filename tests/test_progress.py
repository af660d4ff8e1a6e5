"""How long work reports its progress."""

from collections.abc import Iterator
from typing import TypeVar

from ldpruner.progress import Long, reported, unreported

Item = TypeVar("Item")


def test_by_default_nothing_is_reported() -> None:
    assert list(unreported([1, 2], "counting")) == [1, 2]


def test_a_call_is_reported_as_work_of_one_item() -> None:
    seen: list[tuple[str, int]] = []

    def watched(work: Long[Item], description: str) -> Iterator[Item]:
        seen.append((description, len(work)))
        yield from work

    assert reported(watched, "adding", lambda: 1 + 1) == 2
    assert seen == [("adding", 1)]
