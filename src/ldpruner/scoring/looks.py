"""Looks: how far removals move what the denoiser finds in single steps, at a call each, where a draw costs all."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.utils import _pytree as pytree

from ldpruner.operators.discovery import Removal
from ldpruner.operators.patching import MISFITS, is_out_of_memory, modified
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import networks
from ldpruner.pipelines.sampling import sample_latents
from ldpruner.scoring.importance import Floats

SAMPLES = 4  # of a probe, whose untouched paths are looked at
EVERY = 2  # steps; the samples take turns
COST = 1 / EVERY  # of a draw, for each removal


def look(
    pipeline: DiffusionPipeline, component: str, probe: Probe, sample: int, removals: Sequence[Removal]
) -> Floats:
    """How far removals move the denoiser's output in some steps of one untouched draw.

    In these steps the denoiser is called once more with each removal, on what the pipeline gave it, and the pipeline
    goes on with what the untouched one found. Whatever a removal does to later steps is not seen.

    Args:
        pipeline: untouched.
        component: the denoiser's name.
        probe: what samples there are.
        sample: which is drawn; each sees other steps.
        removals: what is modified, one after the other.

    Returns:
        [removals]: mean squared differences, summed over the calls; NaN of what does not fit.

    Raises:
        Exception: the pipeline's own.
    """
    looks = _Looks(sample, removals)
    handle = networks(pipeline)[component].register_forward_hook(looks.after_call, with_kwargs=True)
    try:
        sample_latents(pipeline, probe, [sample], looks.after_step)
    finally:
        handle.remove()
    return looks.effects


class _Looks:
    def __init__(self, sample: int, removals: Sequence[Removal]) -> None:
        self._sums: list[torch.Tensor | float] = [0.0] * len(removals)
        self._removals, self._until_look = removals, EVERY * sample
        self._is_looking = False

    @property
    def effects(self) -> Floats:
        """[removals]: only here the device is waited for."""
        return np.array([float(one) for one in self._sums])

    def after_step(self, _: torch.Tensor) -> None:
        self._until_look = (self._until_look - 1) % (EVERY * SAMPLES)

    def after_call(self, network: nn.Module, arguments: Any, options: Any, found: Any) -> None:
        if self._is_looking or self._until_look:
            return
        self._is_looking = True
        for place, removal in enumerate(self._removals):
            self._sums[place] += _effect(network, removal, arguments, options, found)
        self._is_looking = False


def _effect(network: nn.Module, removal: Removal, arguments: Any, options: Any, found: Any) -> torch.Tensor | float:
    try:
        with modified(network, [removal]):
            moved = network(*arguments, **options)
        return (_output(moved) - _output(found)).float().square().mean()
    except MISFITS as error:
        if is_out_of_memory(error):
            raise
        return math.nan


def _output(found: Any) -> torch.Tensor:
    """The first tensor of what a denoiser returns, in whatever that comes."""
    return next(leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, torch.Tensor))
