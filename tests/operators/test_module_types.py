"""A module's type is read from its class name."""

import pytest
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from ldpruner.operators.module_types import module_type


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Conv2d(1, 1, 1), "convolution"),
        (nn.Linear(1, 1), "linear"),
        (nn.GroupNorm(1, 1), "normalisation"),
        (nn.SiLU(), "activation"),
        (FeedForward(4), "feed_forward"),
        (BasicTransformerBlock(4, 1, 4), "transformer_block"),
        (ResnetBlock2D(in_channels=4, groups=1, temb_channels=None), "resnet"),
    ],
)
def test_a_module_has_the_type_that_its_class_names(module: nn.Module, expected: str) -> None:
    assert module_type(module) == expected


def test_the_type_of_an_unknown_class_is_its_name() -> None:
    class Kaleidoscope(nn.Module):
        pass

    assert module_type(Kaleidoscope()) == "kaleidoscope"
