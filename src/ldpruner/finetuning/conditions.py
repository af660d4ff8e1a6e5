"""Conditions of examples, each distinct one kept once: all samples share one empty prompt.

A condition is what one argument of the denoiser's call holds for one sample, such as the embedding of a prompt. Its
digest identifies it. Each chunk of examples names the digests of its conditions, and holds those that are new.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

DIGEST_BYTES = 16
Place = tuple[int, int]  # the chunk's number among those with new conditions, and the row there


@dataclass(frozen=True)
class DistinctConditions:
    """The conditions of one argument.

    Attributes:
        parts: [conditions, rows, ...] of each chunk, memory-mapped where they are on disk.
        digests: [examples, copies, 16] of each chunk.
    """

    parts: list[Tensor] = field(default_factory=list)
    digests: list[Tensor] = field(default_factory=list)
    _places: dict[bytes, Place] = field(default_factory=dict)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._places

    def add(self, digests: Tensor, held: Tensor | None, held_digests: Tensor | None) -> None:
        """Adds a chunk: the digests of its examples, and the conditions that are new in it."""
        self.digests.append(digests)
        if held is None or held_digests is None:
            return
        self.parts.append(held)
        for row, digest in enumerate(as_bytes(held_digests)):
            self._places.setdefault(digest, (len(self.parts) - 1, row))

    def holds_all(self, digests: Tensor, held_digests: Tensor | None) -> bool:
        """Whether the conditions of a chunk's examples are here, or in the chunk itself."""
        own = set(as_bytes(held_digests)) if held_digests is not None else set()
        return all(digest in self._places or digest in own for digest in as_bytes(digests))

    def batch(self, places: Iterable[tuple[int, int, int]]) -> Tensor:
        """[batch, rows, ...] the conditions at these places: chunk, example in the chunk, copy."""
        digests = [bytes(self.digests[chunk][example, copy].tolist()) for chunk, example, copy in places]
        return torch.stack([self.parts[part][row] for part, row in map(self._places.__getitem__, digests)])


def split_conditions(conditions: Sequence[Tensor], earlier: Sequence[DistinctConditions]) -> dict[str, Tensor]:
    """What a chunk keeps of its conditions [examples, copies, rows, ...]: all digests, and what is new.

    The names are those that `chunk_conditions` reads.
    """
    kept: dict[str, Tensor] = {}
    for place, tensor in enumerate(conditions):
        rows = tensor.flatten(0, 1)
        digests = [condition_digest(row) for row in rows]
        new = {digest: row for row, digest in reversed(list(enumerate(digests))) if digest not in earlier[place]}
        kept[f"digests.{place}"] = as_tensor(digests).reshape(*tensor.shape[:2], DIGEST_BYTES)
        if new:
            order = sorted(new, key=new.__getitem__)
            kept[f"held.{place}"] = rows[[new[digest] for digest in order]]
            kept[f"held_digests.{place}"] = as_tensor(order)
    return kept


def chunk_conditions(chunk: Mapping[str, Tensor], place: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Digests of the examples, new conditions and their digests of one argument, as `split_conditions` wrote them."""
    return chunk[f"digests.{place}"], chunk.get(f"held.{place}"), chunk.get(f"held_digests.{place}")


def condition_digest(row: Tensor) -> bytes:
    """Identifies a condition by its type, its shape and its bits."""
    row = row.detach().cpu().contiguous()
    digest = hashlib.blake2b(f"{row.dtype} {tuple(row.shape)}".encode(), digest_size=DIGEST_BYTES)
    digest.update(row.flatten().view(torch.uint8).numpy().tobytes())
    return digest.digest()


def as_tensor(digests: Sequence[bytes]) -> Tensor:
    """[digests, 16] bytes."""
    return torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8).reshape(-1, DIGEST_BYTES)


def as_bytes(digests: Tensor) -> list[bytes]:
    """The digests of a tensor [..., 16]."""
    data = digests.contiguous().numpy().tobytes()
    return [data[start : start + DIGEST_BYTES] for start in range(0, len(data), DIGEST_BYTES)]
