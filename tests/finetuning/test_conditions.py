"""Each distinct condition is kept once."""

import pytest
import torch

from ldpruner.finetuning.conditions import (
    DistinctConditions,
    as_bytes,
    as_tensor,
    chunk_conditions,
    condition_digest,
    split_conditions,
)

EMPTY, CAT, SEA = (torch.full((1, 8, 16), value) for value in (0.0, 1.0, 2.0))


def examples_of(*prompts: torch.Tensor) -> torch.Tensor:
    """[examples, 2, rows, ...] an empty prompt and a prompt for each."""
    return torch.stack([torch.stack([EMPTY, prompt]) for prompt in prompts])


def test_a_chunk_holds_what_no_earlier_one_holds() -> None:
    distinct = DistinctConditions()
    chunks = []
    for prompts in ((CAT, CAT, SEA), (SEA, CAT), (SEA + 1,)):
        chunk = split_conditions([[examples_of(*prompts)]], [distinct])
        distinct.add(*chunk_conditions(chunk, 0))
        chunks.append(chunk)
    assert [len(chunk["new.0.0"]) if "new.0.0" in chunk else 0 for chunk in chunks] == [3, 0, 1]
    batch = distinct.batch([(0, 2, 1), (1, 0, 1), (1, 0, 0), (2, 0, 1)])
    assert torch.equal(batch, torch.stack([SEA, SEA, EMPTY, SEA + 1]))


def test_prompts_may_have_several_lengths() -> None:
    long, short = torch.ones(1, 9, 16), torch.ones(1, 5, 16)
    distinct = DistinctConditions()
    batches = [prompt.expand(1, 2, -1, -1, -1) for prompt in (long, short, long + 1, short)]
    distinct.add(*chunk_conditions(split_conditions([batches], [distinct]), 0))
    assert not distinct.is_uniform
    assert sorted(len(part) for part in distinct.parts) == [1, 2]
    assert [distinct.size((0, example, 0))[1] for example in range(4)] == [9, 5, 9, 5]
    assert torch.equal(distinct.batch([(0, 2, 0), (0, 0, 1)]), torch.stack([long + 1, long]))


def test_a_chunk_that_lacks_an_earlier_ones_condition_is_noticed() -> None:
    first, second = DistinctConditions(), DistinctConditions()
    first.add(*chunk_conditions(split_conditions([[examples_of(CAT)]], [first]), 0))
    digests, _, held = chunk_conditions(split_conditions([[examples_of(CAT, SEA)]], [first]), 0)
    assert first.holds_all(digests, held)
    assert not second.holds_all(digests, held)


@pytest.mark.parametrize(
    "other",
    [CAT.half(), CAT.reshape(8, 1, 16), CAT.nextafter(SEA), -EMPTY],
    ids=["type", "shape", "value", "sign of zero"],
)
def test_conditions_of_other_bits_are_others(other: torch.Tensor) -> None:
    assert condition_digest(other) not in {condition_digest(CAT), condition_digest(EMPTY)}
    assert condition_digest(other) == condition_digest(other.clone())


def test_digests_go_through_a_tensor() -> None:
    digests = [condition_digest(tensor) for tensor in (EMPTY, CAT)]
    assert as_bytes(as_tensor(digests)) == digests
    assert as_tensor(digests).shape == (2, 16)
