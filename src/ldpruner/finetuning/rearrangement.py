"""How a pipeline packs, permutes, scales and shifts latents, found by what it does to numbered ones."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BASE = 8  # small enough for half precision to tell the digits of a place apart
TOLERANCE = 1e-3  # relative error


@dataclass(frozen=True)
class Rearrangement:
    """Takes the latents of one sample to an output of as many elements: `output = latents[places] * scale + shift`.

    Attributes:
        shape: of the latents of one sample.
        places: of each element of the output among the flat latents.
        scale, shift: of each element of the output.
    """

    shape: torch.Size
    places: Tensor
    scale: Tensor
    shift: Tensor

    def inverse(self, outputs: Tensor) -> Tensor:
        """The latents [samples, ...] of outputs [samples, elements]."""
        flat = (outputs.double() - self.shift) / self.scale
        latents = torch.empty_like(flat)
        latents[:, self.places] = flat
        return latents.reshape(-1, *self.shape).float()


def find_rearrangement(
    function: Callable[[Tensor], Tensor], shape: torch.Size, tolerance: float = TOLERANCE
) -> Rearrangement | None:
    """Calls a function on a few latents [1, *shape]; None if it does anything but rearrange, scale and shift them.

    The relative error of the rearrangement is at most the tolerance.
    """
    count = shape.numel()

    def applied(values: Tensor) -> Tensor:
        return function(values.reshape(1, *shape).float()).double().flatten()

    shift = applied(torch.zeros(count))
    scale = applied(torch.ones(count)) - shift
    if len(shift) != count or not scale.all():
        return None
    numbers, places, power = torch.arange(count), torch.zeros(count).long(), 1
    while power < count:
        digits = (applied(numbers // power % BASE) - shift) / scale
        places += digits.nan_to_num().round().long() * power
        power *= BASE
    if not torch.equal(places.sort().values, numbers):
        return None
    rearrangement = Rearrangement(shape, places, scale, shift)
    check = torch.randint(-BASE, BASE, (count,), generator=torch.Generator().manual_seed(0))
    output = applied(check)
    error = check[places] * scale + shift - output
    return rearrangement if float(error.norm()) <= tolerance * float(output.norm()) else None
