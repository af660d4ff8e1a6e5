"""The teacher's own calls as examples, for denoisers that cannot be called with any other latents.

A few calls of each sample are kept as the pipeline makes them, with all arguments. A student learns what the teacher
returns for them. This needs no data and no noise schedule, so it fits whatever a pipeline does.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ldpruner.errors import FinetuningError, shown
from ldpruner.finetuning.conditions import DistinctConditions
from ldpruner.finetuning.noise_levels import EVERYWHERE
from ldpruner.finetuning.state import read_tensors, write_tensors
from ldpruner.finetuning.steps import named_arguments
from ldpruner.pipelines.call_values import PLAIN
from ldpruner.pipelines.denoiser import copied
from ldpruner.pipelines.fingerprints import module_dtype
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import Arguments, networks
from ldpruner.pipelines.sampling import sample_latents

CALLS_PER_SAMPLE = 4  # at steps chosen at random
STRUCTURE, VALUES = "structure", "values"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordedCalls:
    """Calls of the teacher; in place of examples and of how the denoiser is called with them.

    Attributes:
        held: the calls in memory, or the files in which they are.
        precision: of the teacher. What a call holds in it has the precision of the network that is called.
        digest: identifies the calls.
    """

    held: Sequence[dict[str, Any] | Path]
    precision: torch.dtype
    digest: str

    shape = torch.Size([1])
    conditions: tuple[DistinctConditions, ...] = ()
    copies = calls = 1
    time_range = EVERYWHERE

    def __len__(self) -> int:
        return len(self.held)

    def groups(self, indices: Tensor, _: Tensor) -> list[Tensor]:
        """Places of calls that run together: each alone."""
        return list(torch.arange(len(indices)).split(1))

    def batch(self, indices: Tensor, _: Tensor) -> tuple[Tensor, list[Any]]:
        """No latents, [1, 1], and the arguments of one call."""
        held = self.held[int(indices)]
        return torch.zeros(1, 1), [held if isinstance(held, dict) else _read(held)]

    def arguments(self, latents: Tensor, _: Tensor, conditions: Sequence[Any]) -> dict[str, Any]:
        """The arguments of a call in the precision of `latents`."""
        arguments: dict[str, Any] = pytree.tree_map_only(
            Tensor, lambda leaf: leaf.to(latents.device, self._dtype(leaf, latents), copy=True), conditions[0]
        )
        return arguments

    def prediction(self, output: Any, _: Tensor) -> Tensor:
        """All numbers that a network returned, [1, numbers]."""
        leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        return torch.cat([leaf.float().flatten() for leaf in leaves])[None]

    def _dtype(self, leaf: Tensor, latents: Tensor) -> torch.dtype:
        return latents.dtype if leaf.dtype == self.precision else leaf.dtype


class OwnOutput:
    """The objective of a pipeline whose noise is not known: there is none besides the teacher's output."""

    def add_noise(self, clean: Tensor, _: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return clean, clean, levels

    def weights(self, times: Tensor) -> Tensor:
        return torch.ones(len(times))


def record_calls(
    teacher: DiffusionPipeline, component: str, probe: Probe, digest: str, folder: Path | None
) -> RecordedCalls:
    """Samples from the teacher and keeps calls of its denoiser; those that are already in `folder` are read.

    Raises:
        FinetuningError: a call holds something that a file cannot keep.
    """
    held: list[dict[str, Any] | Path] = []
    for sample in range(probe.samples):
        paths = _written(folder, sample) if folder is not None else []
        if not paths:
            logger.info("sampling %d of %d", sample, probe.samples)
            calls = _calls_of(teacher, component, probe, sample)
            paths = sorted(_write(folder, sample, calls)) if folder is not None else []
        held += paths or calls
    return RecordedCalls(held, module_dtype(networks(teacher)[component]), digest)


def _calls_of(teacher: DiffusionPipeline, component: str, probe: Probe, sample: int) -> list[dict[str, Any]]:
    """Some calls that denoise one sample, each as likely (Vitter 1985, algorithm R)."""
    random, kept, count = np.random.default_rng([probe.seed, sample]), list[dict[str, Any]](), 0

    def record(module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal count
        place = int(random.integers(count + 1)) if count >= CALLS_PER_SAMPLE else count
        if place < CALLS_PER_SAMPLE:
            kept[place : place + 1] = [copied(named_arguments(module, args, kwargs))]
        count += 1

    hook = networks(teacher)[component].register_forward_pre_hook(record, with_kwargs=True)
    try:
        sample_latents(teacher, probe, [sample])
    finally:
        hook.remove()
    return kept


def _write(folder: Path, sample: int, calls: Sequence[Arguments]) -> Iterator[Path]:
    """Writes calls, the first one last: a sample is whole where that is there."""
    for number, call in reversed(list(enumerate(calls))):
        leaves, structure = pytree.tree_flatten(dict(call))
        others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        for leaf in others:
            if not isinstance(leaf, PLAIN):
                raise FinetuningError(f"the denoiser is called with {shown(leaf)}, which no file can keep")
        tensors = {str(place): leaf for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        path = folder / f"{sample:07d}-{number}.safetensors"
        write_tensors(path, tensors, {STRUCTURE: pytree.treespec_dumps(structure), VALUES: json.dumps(others)})
        yield path


def _written(folder: Path, sample: int) -> list[Path]:
    """The calls of a sample that a file holds; none if it is not whole."""
    paths = sorted(folder.glob(f"{sample:07d}-*.safetensors"))
    if not paths or not paths[0].stem.endswith("-0"):
        return []
    try:
        for path in paths:
            _read(path)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        logger.warning("%s is damaged, and is made again", path)
        return []
    return paths


def _read(path: Path) -> dict[str, Any]:
    tensors, metadata = read_tensors(path)
    leaves = json.loads(metadata[VALUES])
    for place, tensor in tensors.items():
        leaves[int(place)] = tensor
    call: dict[str, Any] = pytree.tree_unflatten(leaves, pytree.treespec_loads(metadata[STRUCTURE]))
    return call
