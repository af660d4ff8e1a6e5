"""Noise levels of a denoiser."""

import math

import pytest
import torch

from ldpruner.finetuning.noise_levels import line_through, own_range, table_of
from ldpruner.finetuning.steps import NetworkCall, Step


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-3, 0.0), (-1e-3, 1.0), (0.5, 3.0)])
def test_a_line_is_found(scale: float, shift: float) -> None:
    time_map = line_through([(time, torch.tensor([time * scale + shift])) for time in (999.0, 600.0, 20.0)])
    assert time_map is not None
    torch.testing.assert_close(time_map(torch.tensor([100.0])), torch.tensor([100 * scale + shift]).double())


def test_what_is_no_line_becomes_a_table() -> None:
    pairs = [(float(time), math.log(time)) for time in range(1000, 0, -10)]
    assert line_through(pairs) is None
    assert float(table_of(pairs)(torch.tensor([505.0]))) == pytest.approx(math.log(505), abs=1e-3)


def test_two_denoisers_share_the_noise_levels() -> None:
    names = {900.0: "first", 700.0: "first", 400.0: "second", 100.0: "second"}
    steps = [Step([NetworkCall(name, {})], time, torch.zeros(1), None) for time, name in names.items()]
    assert own_range(steps, "first") == (550, math.inf)
    assert own_range(steps, "second") == (0, 550)
