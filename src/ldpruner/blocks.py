"""Blocks: samples whose moments are kept together, whatever the batch they were drawn in."""

import itertools

SMALL = (1, 1, 2, 4)  # the first blocks: few samples tell most operators apart
SIZE = 8  # of the others
FEWEST = SMALL[0]  # samples that can be drawn on their own


def samples_of(block: int, samples: int) -> range:
    """The samples in a block; the last block ends with the probe."""
    small, large = SMALL[: block + 1], max(0, block + 1 - len(SMALL))
    end = sum(small) + large * SIZE
    size = SIZE if large else small[-1]
    return range(end - size, min(end, samples))


def grouped(samples: int, batch: int) -> list[list[int]]:
    """The blocks of the first samples, those together that fit into a batch."""
    groups: list[list[int]] = []
    for block in itertools.takewhile(lambda one: samples_of(one, samples), itertools.count()):
        if groups and samples_of(block, samples).stop - samples_of(groups[-1][0], samples).start <= batch:
            groups[-1].append(block)
        else:
            groups.append([block])
    return groups
