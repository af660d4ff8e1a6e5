"""Blocks: every sample in one, whatever the batch and whatever is known of a probe of another size."""

import itertools

import pytest

from ldpruner.scoring.blocks import Block, finished_first, grouped, layout


@pytest.mark.parametrize("samples", [1, 2, 3, 8, 10, 64])
@pytest.mark.parametrize("batch", [1, 7, 8, 64])
def test_every_sample_is_drawn_once(samples: int, batch: int) -> None:
    groups = grouped(layout(samples), batch)
    drawn = [list(itertools.chain(*(block.samples for block in group))) for group in groups]
    assert list(itertools.chain(*drawn)) == list(range(samples))
    assert all(len(group) == 1 or len(members) <= batch for group, members in zip(groups, drawn, strict=True))


def test_a_larger_probe_begins_with_the_same_blocks() -> None:
    assert layout(16) == list(itertools.starmap(Block, itertools.pairwise((0, 1, 2, 4, 8, 16))))
    assert layout(64)[:5] == layout(16)


@pytest.mark.parametrize("sizes", [(3, 4), (12, 16), (16, 12), (16, 11, 14), (3, 16, 5, 64)])
def test_what_is_known_of_other_probes_is_kept(sizes: tuple[int, ...]) -> None:
    known: set[Block] = set()
    for samples in sizes:
        blocks = layout(samples, known)
        assert list(itertools.chain(*(block.samples for block in blocks))) == list(range(samples))
        known |= set(blocks)
        assert finished_first(samples, known) == blocks
    if sizes == tuple(sorted(sizes)):
        assert sum(len(block.samples) for block in known) == max(sizes)  # none is drawn twice


def test_what_is_finished_ends_with_the_first_block_that_is_not() -> None:
    finished = {Block(0, 1), Block(1, 2), Block(4, 8)}
    assert finished_first(8, finished) == [Block(0, 1), Block(1, 2)]
    assert finished_first(1, finished) == [Block(0, 1)]
