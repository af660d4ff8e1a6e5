"""Blocks: every sample in one, whatever the batch; those of a smaller probe are those of a larger one."""

import itertools

import pytest

from ldpruner.blocks import grouped, samples_of


@pytest.mark.parametrize("samples", [1, 2, 3, 8, 10, 64])
@pytest.mark.parametrize("batch", [1, 7, 8, 64])
def test_every_sample_is_drawn_once(samples: int, batch: int) -> None:
    groups = grouped(samples, batch)
    drawn = [list(itertools.chain(*(samples_of(block, samples) for block in group))) for group in groups]
    assert list(itertools.chain(*drawn)) == list(range(samples))
    assert all(len(group) == 1 or len(members) <= batch for group, members in zip(groups, drawn, strict=True))


def test_a_larger_probe_begins_with_the_same_blocks() -> None:
    ends = (0, 1, 2, 4, 8, 16)
    assert [samples_of(block, 16) for block in range(5)] == [range(*pair) for pair in itertools.pairwise(ends)]
    assert [samples_of(block, 64) for block in range(5)] == [samples_of(block, 16) for block in range(5)]
    assert not samples_of(5, 16)
