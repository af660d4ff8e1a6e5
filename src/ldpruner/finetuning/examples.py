"""What a denoiser learns from: latents, and what it is given with them. Encoded or drawn once, and kept on disk."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ldpruner.errors import FinetuningError, StorageError
from ldpruner.finetuning.calls import Conditions, named_arguments
from ldpruner.finetuning.dataset import Item, Rows, items
from ldpruner.finetuning.encoding import Encoder, find_encoder
from ldpruner.fingerprints import weights_digest
from ldpruner.latents import draw_latents
from ldpruner.pipelines import find_denoiser, networks
from ldpruner.probe import Probe

CHUNK = 64  # examples in one file
LATENTS = "latents"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examples:
    """Examples in memory, or mapped from their files.

    Attributes:
        latents: [examples, ...], as the scheduler steps them.
        given: what the denoiser is given with each, [examples, copies, rows, ...].
    """

    latents: Tensor
    given: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, indices: Tensor, copies: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Latents [batch, ...] of some examples, and one copy of what is given with each: [batch, rows, ...]."""
        return self.latents[indices].float(), [one[indices, copies] for one in self.given]


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
    conditions: Conditions
    probe: Probe
    batch: int
    rows: Rows | None = None

    def examples(self, folder: Path | None) -> Examples:
        """All examples; chunks that `folder` already holds are read.

        Raises:
            FinetuningError: there are none.
            StorageError: the folder cannot be written.
        """
        place = folder / f"{self._digest()}" if folder is not None and self._digest() else None
        parts = list(self._chunks(place))
        if not parts:
            raise FinetuningError("the data holds no example")
        given = [name for name in parts[0] if name != LATENTS]
        whole = {name: torch.cat([part[name] for part in parts]) for name in (LATENTS, *given)}
        return Examples(whole[LATENTS], tuple(whole[name] for name in given))

    def _chunks(self, folder: Path | None) -> Iterator[dict[str, Tensor]]:
        total = self.probe.samples if self.rows is None else len(self.rows)
        encoder = None
        for first in range(0, total, CHUNK):
            path = folder / f"{first:07d}.safetensors" if folder is not None else None
            if path is not None and path.exists():
                yield safetensors.torch.load_file(path)
                continue
            logger.info("%s %d of %d", "drawing" if self.rows is None else "encoding", first, total)
            wanted = range(first, min(first + CHUNK, total))
            if self.rows is not None:
                encoder = encoder or find_encoder(self.teacher, self.probe)
            chunk = self._drawn(wanted) if encoder is None else self._encoded(encoder, wanted)
            if path is not None:
                _write(path, chunk)
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
        call = find_denoiser(self.teacher, self.component, probe.arguments(self.teacher, batch))
        return [one.cpu() for one in self.conditions.of(named_arguments(call), len(batch))]

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


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(tensors, partial)
        partial.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise StorageError(f"cannot write {path}: {error}") from error
