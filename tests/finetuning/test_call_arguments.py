"""Arguments that belong to samples."""

from typing import Any

import pytest
import torch

from ldpruner.errors import FinetuningError
from ldpruner.finetuning.call_arguments import parts_of_samples, places_of, sample_and_time


def call(samples: int, length: int = 5, mask: Any = None) -> dict[str, Any]:
    return {
        "hidden_states": torch.zeros(samples, 4),
        "encoder_hidden_states": [torch.zeros(samples, length, 8)],
        "mask": mask,
        "timestep": torch.zeros(samples),
        "img_shapes": [[(1, 2, 2)]] * samples,
        "ids": torch.zeros(7, 3),
    }


def test_the_latents_and_the_noise_level_are_known_by_their_names() -> None:
    assert sample_and_time(call(1), "It") == ("hidden_states", "timestep")
    with pytest.raises(FinetuningError, match="It calls its denoiser with x: no latents and timestep"):
        sample_and_time({"x": torch.zeros(1)}, "It")


def test_what_grows_belongs_to_samples() -> None:
    other = places_of(call(1), ["hidden_states", "timestep"])
    parts = parts_of_samples(call(1), call(2), other, 1, "It")
    assert (parts.places, parts.repeated, parts.sizes_differ) == ((1,), ("img_shapes",), False)
    assert parts_of_samples(call(1), call(2, length=6), other, 1, "It").sizes_differ
    assert parts_of_samples(call(1), call(2, mask=torch.ones(2, 5)), other, 1, "It").sizes_differ


def test_a_list_of_other_items_for_each_sample_is_refused() -> None:
    pair = {**call(2), "img_shapes": [[(1, 2, 2)], [(1, 3, 3)]]}
    with pytest.raises(FinetuningError, match="lists that grow with the samples: img_shapes"):
        parts_of_samples(call(1), pair, set(), 1, "It")
