"""The noise levels of a denoiser: how they follow from the scheduler's, and which of them are its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldpruner.finetuning.steps import Step

# Scale and shift from the scheduler's noise level to the denoiser's: the same, a share of 1000, or reversed.
TIME_SCALES = ((1.0, 0.0), (1e-3, 0.0), (-1e-3, 1.0))
EVERYWHERE = (0.0, math.inf)


@dataclass(frozen=True)
class TimeMap:
    """Turns the scheduler's noise levels into the denoiser's: `scale * level + shift`, or between those of a table."""

    scale: float = 1.0
    shift: float = 0.0
    table: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def __call__(self, times: Tensor) -> Tensor:
        if self.table is None:
            return times.double() * self.scale + self.shift
        return torch.from_numpy(np.interp(times.double().cpu().numpy(), *self.table)).to(times.device)


def line_through(pairs: Sequence[tuple[float, Any]]) -> TimeMap | None:
    """The line on which noise levels of the scheduler and of the denoiser lie, if there is one."""
    is_half = torch.as_tensor(pairs[0][1]).dtype in (torch.float16, torch.bfloat16)
    x, y = _columns(pairs)
    tolerance = (1e-2 if is_half else 1e-4) * max(np.abs(y).max(), 1e-3)
    fitted = tuple(np.polyfit(x, y, 1).tolist())
    # rounded to half precision, the levels would give a line that is slightly off
    for scale, shift in (*TIME_SCALES, *(() if is_half else (fitted,))):
        if np.abs(x * scale + shift - y).max() <= tolerance:
            return TimeMap(scale, shift)
    return None


def table_of(pairs: Sequence[tuple[float, Any]]) -> TimeMap:
    """A table of noise levels of the scheduler and of the denoiser."""
    x, y = _columns(pairs)
    order = np.argsort(x)
    return TimeMap(table=(tuple(x[order].tolist()), tuple(y[order].tolist())))


def own_range(steps: Sequence[Step], component: str) -> tuple[float, float]:
    """The lowest and the highest of the scheduler's noise levels at which a network is called, by the steps of a run.

    A bound lies halfway to the next level, at which another network is called.
    """
    own = [step.time for step in steps if step.of(component)]
    others = [step.time for step in steps if not step.of(component)]
    below, above = [time for time in others if time < min(own)], [time for time in others if time > max(own)]
    low, high = EVERYWHERE
    return (min(own) + max(below)) / 2 if below else low, (max(own) + min(above)) / 2 if above else high


def first_number(value: Any) -> float:
    """A noise level as a number, from a number or the first of a tensor."""
    return float(torch.as_tensor(value).flatten()[0])


def _columns(pairs: Sequence[tuple[float, Any]]) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.array([(time, first_number(level)) for time, level in pairs]).T
    return x, y
