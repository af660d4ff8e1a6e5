"""Values of a pipeline's call as JSON."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldpruner.errors import ProbeError
from ldpruner.pipelines.call_values import ArgumentDigest, as_json, digests_in, from_json

RED, BLUE = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))


@dataclass
class Condition:
    """As some video pipelines take them."""

    image: Image.Image
    frame: int


@pytest.mark.parametrize("value", [None, True, 3, 0.5, "a", [1, [2]], {"a": {"b": 1}}])
def test_plain_values_stay(value: Any) -> None:
    assert from_json("x", json.loads(json.dumps(as_json(value)))) == value


def test_numbers_of_numpy_and_paths_become_plain() -> None:
    assert as_json([np.float32(0.5), np.int64(3), Path("a/b")]) == [0.5, 3, "a/b"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (RED, BLUE),
        (RED, RED.convert("RGBA")),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16)),
        (np.zeros(2), np.ones(2)),
        (torch.float16, torch.float32),
        (Condition(RED, 0), Condition(BLUE, 0)),
        (Condition(RED, 0), Condition(RED, 1)),
    ],
)
def test_different_contents_have_different_digests(first: Any, second: Any) -> None:
    digests = [from_json("x", json.loads(json.dumps(as_json(value)))) for value in (first, second)]
    assert all(isinstance(digest, ArgumentDigest) for digest in digests)
    assert digests[0] != digests[1]
    assert digests[0].type == type(first).__name__
    assert as_json(digests[0]) == as_json(first)


def test_digests_are_seen_in_lists_and_mappings() -> None:
    value = from_json("x", as_json({"a": [1, (RED, 2)], "b": BLUE}))
    assert [digest.type for digest in digests_in(value)] == ["Image", "Image"]
    assert not digests_in([1, "Image", {"type": "Image"}])


def nested_lists(depth: int) -> list[Any]:
    return [nested_lists(depth - 1)] if depth else []


@pytest.mark.parametrize("make", [lambda: print, object, lambda: nested_lists(30), lambda: [float("nan")], set])
def test_what_no_file_can_keep_or_identify_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ProbeError, match="probe call x") as caught:
        from_json("x", make())
    assert "\n" not in str(caught.value)
