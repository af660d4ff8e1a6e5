"""What a denoiser learns from: latents, and what it is given with them. Encoded or drawn once, and kept on disk."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import safetensors.torch
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ldpruner.errors import FinetuningError, StorageError
from ldpruner.finetuning.conditioning import CallSignature, recorded_calls
from ldpruner.finetuning.dataset import Item, Rows, items
from ldpruner.finetuning.encoding import Encoder, find_encoder
from ldpruner.pipelines.fingerprints import weights_digest
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import networks
from ldpruner.pipelines.sampling import draw_latents

CHUNK = 64  # examples in one file
LATENTS = "latents"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examples:
    """Examples in chunks, as they are mapped from their files: a large set need not fit into memory.

    Attributes:
        chunks: of each example its latents, as the scheduler steps them, [examples, ...], and what the denoiser is
            given with it, [examples, copies, rows, ...].
        digest: tells them from others.
    """

    chunks: tuple[dict[str, Tensor], ...]
    digest: str

    @cached_property
    def _ends(self) -> Tensor:
        return torch.tensor([len(chunk[LATENTS]) for chunk in self.chunks]).cumsum(0)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.chunks else 0

    @property
    def names(self) -> list[str]:
        """Of what is given."""
        return [name for name in self.chunks[0] if name != LATENTS]

    @property
    def shape(self) -> torch.Size:
        """Of one example's latents."""
        return self.chunks[0][LATENTS].shape[1:]

    def batch(self, indices: Tensor, copies: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Latents [batch, ...] of some examples, and one copy of what is given with each: [batch, rows, ...]."""
        chunks = torch.searchsorted(self._ends, indices, right=True)
        rows = indices - torch.cat([torch.zeros(1, dtype=torch.long), self._ends])[chunks]
        places = list(zip(chunks.tolist(), rows.tolist(), copies.tolist(), strict=True))
        latents = torch.stack([self.chunks[chunk][LATENTS][row] for chunk, row, _ in places])

        def one_copy(name: str) -> Tensor:
            return torch.stack([self.chunks[chunk][name][row, copy] for chunk, row, copy in places])

        return latents.float(), [one_copy(name) for name in self.names]


@dataclass(frozen=True)
class Source:
    """Where examples come from: the teacher's own samples, or rows of data.

    Attributes:
        teacher: the original pipeline.
        component: its denoiser.
        conditions: how it calls it.
        probe: how it draws, and what it is called with.
        batch: samples drawn at once.
        rows: of data; None for the teacher's own samples.
    """

    teacher: DiffusionPipeline
    component: str
    conditions: CallSignature
    probe: Probe
    batch: int
    rows: Rows | None = None

    def examples(self, folder: Path | None) -> Examples:
        """All examples; chunks that `folder` already holds are read.

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
        encoder = None
        for first in range(0, total, CHUNK):
            path = folder / f"{first:07d}.safetensors" if folder is not None else None
            if path is not None and (known := _read(path)) is not None:
                yield known
                continue
            logger.info("%s %d of %d", "drawing" if self.rows is None else "encoding", first, total)
            wanted = range(first, min(first + CHUNK, total))
            if self.rows is not None:
                encoder = encoder or find_encoder(self.teacher, self.probe)
            chunk = self._drawn(wanted) if encoder is None else self._encoded(encoder, wanted)
            if path is not None:
                _write(path, chunk)
                chunk = _read(path) or chunk  # which is left on the disk until it is asked for
            yield chunk

    def _drawn(self, wanted: range) -> dict[str, Tensor]:
        batches = [wanted[first : first + self.batch] for first in range(0, len(wanted), self.batch)]
        latents = [draw_latents(self.teacher, self.probe, batch).cpu() for batch in batches]
        given = [self._given(self.probe, batch) for batch in batches]
        return _chunk(torch.cat(latents), given)

    def _encoded(self, encoder: Encoder, wanted: range) -> dict[str, Tensor]:
        assert self.rows is not None
        found = list(items([self.rows[index] for index in wanted], self.teacher))
        probe = _asking(self.probe, found)
        batches = [range(len(found))[first : first + self.batch] for first in range(0, len(found), self.batch)]
        latents = [encoder([found[index].picture for index in batch]) for batch in batches]
        return _chunk(torch.cat(latents), [self._given(probe, batch) for batch in batches])

    def _given(self, probe: Probe, batch: Sequence[int]) -> list[Tensor]:
        """What the denoiser is given with some samples; only what comes before it runs."""
        if not self.conditions.rows and self.conditions.appended is None:
            return []
        arguments = probe.arguments(self.teacher, batch)
        calls = recorded_calls(self.teacher, self.component, self.conditions, arguments)
        return [one.cpu() for one in self.conditions.of(calls, len(batch))]

    def _digest(self) -> str | None:
        """Tells these examples from others; None for rows that nothing can tell from others."""
        rows = getattr(self.rows, "_fingerprint", None)
        if self.rows is not None and rows is None:
            return None
        weights = {name: weights_digest(part) for name, part in networks(self.teacher).items()}
        # data is encoded the same whatever would be drawn
        drawing = {"samples", "seed", "steps", "prompts"} if rows is not None else None
        identity = {"rows": rows, "weights": weights, "probe": self.probe.model_dump(mode="json", exclude=drawing)}
        return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=8).hexdigest()


def _asking(probe: Probe, found: Sequence[Item]) -> Probe:
    """A probe that asks for the pictures of some items."""
    names = {name for item in found for name in item.asked}
    asked = {name: tuple(item.asked[name] for item in found) for name in names}
    prompts = asked.pop("prompt", probe.prompts)
    return probe.model_copy(update={"samples": len(found), "prompts": prompts, "call": {**probe.call, **asked}})


def _chunk(latents: Tensor, given: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    columns = {f"given.{place}": torch.cat(parts).contiguous() for place, parts in enumerate(zip(*given, strict=True))}
    return {LATENTS: latents.contiguous(), **columns}


def _read(path: Path) -> dict[str, Tensor] | None:
    """A chunk; None where there is none that can be read."""
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        return None
    except safetensors.SafetensorError:
        logger.warning("%s is damaged and is made again", path)
        return None


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(tensors, partial)
        partial.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise StorageError(f"cannot write {path}: {error}") from error
