"""How far pictures are from a tint."""

import torch

from benchmarks.lora_transfer import off_tint, tinted


def test_tinted_pictures_are_in_the_tint_and_others_are_not() -> None:
    pixels = torch.randint(0, 256, (3, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert off_tint(tinted(pixels)).max() < 1  # rounding
    assert off_tint(pixels).min() > 50


def test_black_and_white_keep_their_brightness() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 1, 2)
    assert tinted(pixels)[0, :, 0].T.tolist() == [[60, 20, 90], [255, 255, 255]]
