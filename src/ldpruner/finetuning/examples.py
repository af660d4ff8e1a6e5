"""Training examples: latents and their conditions, sampled or encoded once and kept on disk."""

import bisect
import hashlib
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from torch import Tensor

from ldpruner.errors import FinetuningError, one_line
from ldpruner.finetuning.conditioning import CallSignature
from ldpruner.finetuning.conditions import DistinctConditions, chunk_conditions, split_conditions
from ldpruner.finetuning.dataset import Item, Rows, items
from ldpruner.finetuning.encoding import Encoder, find_encoder
from ldpruner.finetuning.state import read_tensors, write_tensors
from ldpruner.finetuning.steps import record_steps, record_until
from ldpruner.pipelines.fingerprints import weights_digest
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.prompt_cache import CallCache
from ldpruner.pipelines.running import networks
from ldpruner.pipelines.sampling import FAILURES, sample_latents

CHUNK = 64  # examples in a file
LATENTS = "latents"
SAMPLING = {"samples", "seed", "steps", "prompts", "categories"}  # of a probe; encoded data does not depend on these

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examples:
    """Examples in chunks, memory-mapped from their files: a large set need not fit into memory.

    Attributes:
        latents: of each chunk, as the scheduler steps them, [examples, ...].
        conditions: of each argument that holds some.
        digest: identifies the examples.
    """

    latents: tuple[Tensor, ...]
    conditions: tuple[DistinctConditions, ...]
    digest: str

    @cached_property
    def _ends(self) -> list[int]:
        """How many examples there are up to the end of each chunk."""
        return list(itertools.accumulate(map(len, self.latents)))

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def shape(self) -> torch.Size:
        """The shape of one example's latents."""
        return self.latents[0].shape[1:]

    def batch(self, indices: Tensor, copies: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Latents [batch, ...] of some examples, and one copy of the conditions of each, [batch, rows, ...]."""
        places = [self._place(index) for index in indices.tolist()]
        wanted = [(*place, copy) for place, copy in zip(places, copies.tolist(), strict=True)]
        latents = torch.stack([self.latents[chunk][example] for chunk, example in places])
        return latents.float(), [distinct.batch(wanted) for distinct in self.conditions]

    def groups(self, indices: Tensor, copies: Tensor) -> list[Tensor]:
        """Places among these examples that run together: those whose conditions have the same sizes."""
        if all(distinct.is_uniform for distinct in self.conditions):
            return [torch.arange(len(indices))]
        groups: dict[Any, list[int]] = {}
        for number, (index, copy) in enumerate(zip(indices.tolist(), copies.tolist(), strict=True)):
            place = (*self._place(index), copy)
            groups.setdefault(tuple(distinct.size(place) for distinct in self.conditions), []).append(number)
        return [torch.tensor(group) for group in groups.values()]

    def _place(self, index: int) -> tuple[int, int]:
        """The chunk of an example, and its row there."""
        chunk = bisect.bisect_right(self._ends, index)
        return chunk, index - (self._ends[chunk - 1] if chunk else 0)


@dataclass(frozen=True)
class Source:
    """Where examples come from: rows of data, or the teacher's own samples if None; `batch` of them at once."""

    teacher: DiffusionPipeline
    component: str
    call_signature: CallSignature
    probe: Probe
    batch: int
    rows: Rows | None = None

    def examples(self, folder: Path | None) -> Examples:
        """All examples; chunks that are already in `folder` are read.

        Raises:
            FinetuningError: there are none.
            StorageError: the folder cannot be written.
        """
        digest = digest_of(self.teacher, self.probe, self.rows)
        signature = self.call_signature
        conditions = tuple(DistinctConditions() for _ in range(signature.all_conditions))
        chunks = self._chunks(folder / digest if folder is not None and digest is not None else None, conditions)
        latents = tuple(chunk[LATENTS] for chunk in chunks)
        if not latents:
            raise FinetuningError("the data holds no example")
        return Examples(latents, conditions, digest or f"{sum(map(len, latents))} of memory")

    def _chunks(self, folder: Path | None, conditions: Sequence[DistinctConditions]) -> Iterator[dict[str, Tensor]]:
        """Yields the chunks in their order; their conditions are added to those of the chunks before."""
        total = self.probe.samples if self.rows is None else len(self.rows)
        for first in range(0, total, CHUNK):
            path = folder / f"{first:07d}.safetensors" if folder is not None else None
            chunk = _read(path, conditions) if path is not None else None
            if chunk is None:
                logger.info("%s %d of %d", "sampling" if self.rows is None else "encoding", first, total)
                chunk = self._chunk(range(first, min(first + CHUNK, total)), conditions)
                if path is not None:
                    write_tensors(path, chunk)
                    chunk = _read(path, conditions) or chunk  # from now on in the file, not in memory
            for argument, distinct in enumerate(conditions):
                distinct.add(*chunk_conditions(chunk, argument))
            yield chunk

    def _chunk(self, indices: range, conditions: Sequence[DistinctConditions]) -> dict[str, Tensor]:
        """Samples some examples, or encodes some rows, in batches."""
        probe, chosen = self.probe, []
        if self.rows is not None:
            rows, from_itself = [self.rows[index] for index in indices], not self.call_signature.earlier
            chosen = list(items(rows, self.teacher, probe.call, from_itself=from_itself))
            probe, indices = _probe_of(chosen, probe), range(len(chosen))
        batches = [indices[first : first + self.batch] for first in range(0, len(indices), self.batch)]
        latents, parts = [], []
        for batch in batches:
            if self.rows is None:
                with self._cache.before_denoising(self.teacher, self.component):
                    latents.append(sample_latents(self.teacher, probe, batch).cpu())
            else:
                latents.append(self._encoder([chosen[index].media for index in batch]))
            # alone, a sample is not padded to the size of others
            alone = [[index] for index in batch] if self.call_signature.sizes_differ else [batch]
            parts += [self._conditions(probe, indices) for indices in alone]
        tensors = list(zip(*parts, strict=True))
        return {LATENTS: torch.cat(latents), **split_conditions(tensors, conditions)}

    @cached_property
    def _cache(self) -> CallCache:
        """Keeps the embeddings of the last prompts: sampling needs them, then their conditions."""
        return CallCache()

    @cached_property
    def _encoder(self) -> Encoder:
        return find_encoder(self.teacher, self.probe)

    def _conditions(self, probe: Probe, batch: Sequence[int]) -> list[Tensor]:
        """The conditions of some samples; the denoiser itself runs only where guidance calls it twice."""
        signature = self.call_signature
        if not signature.all_conditions:
            return []
        arguments = probe.arguments(self.teacher, batch)
        watched = [call.signature.component for call in signature.earlier]
        try:
            with self._cache.before_denoising(self.teacher, self.component, *watched):
                if signature.calls == 1:
                    calls = record_until(self.teacher, self.component, arguments)
                else:
                    calls = record_steps(self.teacher, self.component, arguments, 1)[0].calls
        except FAILURES as error:
            name = type(self.teacher).__name__
            raise FinetuningError(f"{name} cannot be run with {sorted(arguments)}: {one_line(error)}") from error
        return [tensor.cpu() for tensor in signature.conditions(calls, len(batch))]


def digest_of(teacher: DiffusionPipeline, probe: Probe, rows: Rows | None = None, **more: Any) -> str | None:
    """Identifies examples; None for rows without a fingerprint."""
    fingerprint = getattr(rows, "_fingerprint", None)
    if rows is not None and fingerprint is None:
        return None
    weights = {name: weights_digest(part) for name, part in networks(teacher).items()}
    settings = probe.model_dump(mode="json", exclude=SAMPLING if fingerprint is not None else {"categories"})
    identity = json.dumps({"rows": fingerprint, "weights": weights, "probe": settings, **more}, sort_keys=True)
    return hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()


def _probe_of(chosen: Sequence[Item], probe: Probe) -> Probe:
    """A probe with the captions or classes of some items."""
    names = {name for item in chosen for name in item.arguments}
    arguments: dict[str, Any] = {name: tuple(item.arguments[name] for item in chosen) for name in names}
    arguments |= {name: torch.stack(value) for name, value in arguments.items() if isinstance(value[0], Tensor)}
    prompts = arguments.pop("prompt", None)
    call = {name: value for name, value in probe.call.items() if name != "prompt" or prompts is None}
    return probe.replace(
        samples=len(chosen), prompts=prompts or probe.prompts, categories=None, call={**call, **arguments}
    )


def _read(path: Path, conditions: Sequence[DistinctConditions]) -> dict[str, Tensor] | None:
    """A chunk whose conditions are in it or in those before; None where it has to be made."""
    try:
        chunk = read_tensors(path)[0]
        parts = [(distinct, *chunk_conditions(chunk, argument)) for argument, distinct in enumerate(conditions)]
        if all(distinct.holds_all(digests, held) for distinct, digests, _, held in parts) and LATENTS in chunk:
            return chunk
        problem = "is incomplete, or of an earlier version"
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        problem = f"is damaged ({one_line(error)})"
    logger.warning("%s %s, and is made again", path, problem)
    return None
