"""Training examples: latents and their conditions, sampled or encoded once and kept on disk."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import ConcatDataset, StackDataset

from ldpruner.errors import FinetuningError
from ldpruner.finetuning.conditioning import CallSignature, named_arguments, record_steps
from ldpruner.finetuning.dataset import Item, Rows, items
from ldpruner.finetuning.encoding import Encoder, find_encoder
from ldpruner.finetuning.state import read_tensors, write_tensors
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.fingerprints import weights_digest
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import networks
from ldpruner.pipelines.sampling import sample_latents

CHUNK = 64  # examples in a file
LATENTS = "latents"
SAMPLING = {"samples", "seed", "steps", "prompts"}  # of a probe; encoded data does not depend on these

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examples:
    """Examples in chunks, memory-mapped from their files: a large set need not fit into memory.

    Attributes:
        chunks: latents as the scheduler steps them, [examples, ...], and conditions, [examples, copies, rows, ...].
        digest: identifies the examples.
    """

    chunks: tuple[dict[str, Tensor], ...]
    digest: str

    @cached_property
    def _dataset(self) -> ConcatDataset[dict[str, Tensor]]:
        return ConcatDataset(StackDataset(**chunk) for chunk in self.chunks)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def names(self) -> list[str]:
        """The names of the conditions."""
        return [name for name in self.chunks[0] if name != LATENTS]

    @property
    def shape(self) -> torch.Size:
        """The shape of one example's latents."""
        return self.chunks[0][LATENTS].shape[1:]

    def batch(self, indices: Tensor, copies: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Latents [batch, ...] of some examples, and one copy of the conditions of each, [batch, rows, ...]."""
        examples = [self._dataset[index] for index in indices.tolist()]
        conditions = [
            torch.stack([example[name][copy] for example, copy in zip(examples, copies, strict=True)])
            for name in self.names
        ]
        return torch.stack([example[LATENTS] for example in examples]).float(), conditions


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
        digest = self._digest()
        chunks = tuple(self._chunks(folder / digest if folder is not None and digest is not None else None))
        if not chunks:
            raise FinetuningError("the data holds no example")
        return Examples(chunks, digest or f"{sum(len(chunk[LATENTS]) for chunk in chunks)} of memory")

    def _chunks(self, folder: Path | None) -> Iterator[dict[str, Tensor]]:
        total = self.probe.samples if self.rows is None else len(self.rows)
        for first in range(0, total, CHUNK):
            path = folder / f"{first:07d}.safetensors" if folder is not None else None
            chunk = _read(path) if path is not None else None
            if chunk is None:
                logger.info("%s %d of %d", "sampling" if self.rows is None else "encoding", first, total)
                chunk = self._chunk(range(first, min(first + CHUNK, total)))
                if path is not None:
                    write_tensors(path, chunk)
                    chunk = _read(path) or chunk  # from now on in the file, not in memory
            yield chunk

    def _chunk(self, indices: range) -> dict[str, Tensor]:
        """Samples some examples, or encodes some rows, in batches."""
        probe, chosen = self.probe, []
        if self.rows is not None:
            chosen = list(items([self.rows[index] for index in indices], self.teacher))
            probe, indices = _probe_of(chosen, probe), range(len(chosen))
        batches = [indices[first : first + self.batch] for first in range(0, len(indices), self.batch)]
        if self.rows is None:
            latents = [sample_latents(self.teacher, probe, batch).cpu() for batch in batches]
        else:
            latents = [self._encoder([chosen[index].picture for index in batch]) for batch in batches]
        conditions = zip(*(self._conditions(probe, batch) for batch in batches), strict=True)
        tensors = {f"conditions.{place}": torch.cat(parts) for place, parts in enumerate(conditions)}
        return {LATENTS: torch.cat(latents), **tensors}

    @cached_property
    def _encoder(self) -> Encoder:
        return find_encoder(self.teacher, self.probe)

    def _conditions(self, probe: Probe, batch: Sequence[int]) -> list[Tensor]:
        """The conditions of some samples; the denoiser itself runs only where guidance calls it twice."""
        if not self.call_signature.condition_places and self.call_signature.appended is None:
            return []
        arguments = probe.arguments(self.teacher, batch)
        if self.call_signature.calls == 1:
            calls = [named_arguments(find_denoiser(self.teacher, self.component, arguments))]
        else:
            calls = record_steps(self.teacher, self.component, arguments, 1)[0].calls
        return [tensor.cpu() for tensor in self.call_signature.conditions(calls, len(batch))]

    def _digest(self) -> str | None:
        """Identifies the examples; None for rows without a fingerprint."""
        rows = getattr(self.rows, "_fingerprint", None)
        if self.rows is not None and rows is None:
            return None
        weights = {name: weights_digest(part) for name, part in networks(self.teacher).items()}
        probe = self.probe.model_dump(mode="json", exclude=SAMPLING if rows is not None else None)
        identity = json.dumps({"rows": rows, "weights": weights, "probe": probe}, sort_keys=True)
        return hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()


def _probe_of(chosen: Sequence[Item], probe: Probe) -> Probe:
    """A probe with the captions or classes of some items."""
    names = {name for item in chosen for name in item.arguments}
    arguments = {name: tuple(item.arguments[name] for item in chosen) for name in names}
    prompts = arguments.pop("prompt", probe.prompts)
    return probe.replace(samples=len(chosen), prompts=prompts, call={**probe.call, **arguments})


def _read(path: Path) -> dict[str, Tensor] | None:
    """A chunk; None where no file can be read."""
    try:
        return read_tensors(path)[0]
    except FileNotFoundError:
        return None
    except SafetensorError:
        logger.warning("%s is damaged and is made again", path)
        return None
