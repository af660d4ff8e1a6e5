"""Finding how latents are rearranged from what happens to numbered ones."""

import pytest
import torch
from torch import Tensor

from ldpruner.finetuning.rearrangement import find_rearrangement

SHAPE = torch.Size((16, 12))


def unpacked(latents: Tensor) -> Tensor:
    """Patches of 2x2 become pixels; then each channel is scaled and shifted."""
    pixels = latents.reshape(1, 4, 4, 3, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(1, 3, 8, 8)
    return pixels * torch.tensor([0.5, -2.0, 3.0]).view(1, 3, 1, 1) + torch.tensor([0.0, 1.0, -4.0]).view(1, 3, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_packed_latents_are_found_again(dtype: torch.dtype) -> None:
    rearrangement = find_rearrangement(lambda latents: unpacked(latents).to(dtype), SHAPE, tolerance=0.06)
    assert rearrangement is not None
    latents = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    outputs = torch.cat([unpacked(one[None]) for one in latents])
    torch.testing.assert_close(rearrangement.inverse(outputs.flatten(1)), latents, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "function",
    [lambda x: x**2, lambda x: x + x.flip(1), lambda x: x[:, 1:], torch.zeros_like, lambda x: x.cumsum(1), torch.tanh],
)
def test_what_does_more_is_not_taken_for_a_rearrangement(function: object) -> None:
    assert callable(function)
    assert find_rearrangement(function, SHAPE) is None
