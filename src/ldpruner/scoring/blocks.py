"""Blocks: samples whose moments are kept together, whatever the batch they were drawn in."""

import itertools
from collections.abc import Collection, Sequence
from typing import NamedTuple

ENDS = (1, 2, 4)  # of the first blocks: few samples tell most operators apart
SIZE = 8  # of the others
FEWEST = ENDS[0]  # samples that can be drawn on their own


class Block(NamedTuple):
    """Samples of a probe, from `start` to before `stop`."""

    start: int
    stop: int

    @property
    def samples(self) -> range:
        return range(*self)


def layout(samples: int, known: Collection[Block] = ()) -> list[Block]:
    """Blocks that hold the first samples, in order: known ones where they fit, usual ones elsewhere.

    A probe of another size may have left known ones that end in the middle of a usual one, or that end too late.
    """
    found = list[Block]()
    while (start := found[-1].stop if found else 0) < samples:
        usual = next((end for end in ENDS if end > start), (start // SIZE + 1) * SIZE)
        fitting = [one for one in known if one.start == start and one.stop <= samples]
        found.append(max(fitting, default=Block(start, min(usual, samples))))
    return found


def finished_first(samples: int, finished: Collection[Block]) -> list[Block]:
    """Those of the finished blocks that hold the first samples, up to the first one that is not there."""
    return list(itertools.takewhile(lambda one: one in finished, layout(samples, finished)))


def grouped(blocks: Sequence[Block], batch: int) -> list[list[Block]]:
    """Blocks in order, those together that fit into a batch."""
    groups: list[list[Block]] = []
    for block in blocks:
        if groups and block.stop - groups[-1][0].start <= batch:
            groups[-1].append(block)
        else:
            groups.append([block])
    return groups
