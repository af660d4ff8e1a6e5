"""Conditions of examples, each distinct one kept once: all samples share one empty prompt.

A condition is what one argument of the denoiser's call holds for one sample, such as the embedding of a prompt. Its
digest identifies it. Each chunk of examples names the digests of its conditions, and holds those that are new. The
conditions of an argument may have several sizes, such as prompts of several lengths.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

DIGEST_BYTES = 16
Place = tuple[int, int]  # a part, and the row there


@dataclass(frozen=True)
class DistinctConditions:
    """The conditions of one argument.

    Attributes:
        parts: [conditions, rows, ...] of each chunk and size, memory-mapped where they are on disk.
        digests: [examples, copies, 16] of each chunk.
    """

    parts: list[Tensor] = field(default_factory=list)
    digests: list[Tensor] = field(default_factory=list)
    _places: dict[bytes, Place] = field(default_factory=dict)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._places

    def add(self, digests: Tensor, held: Sequence[Tensor], held_digests: Tensor | None) -> None:
        """Adds a chunk: the digests of its examples, and the conditions that are new in it, by size."""
        self.digests.append(digests)
        rows = [(len(self.parts) + place, row) for place, part in enumerate(held) for row in range(len(part))]
        self.parts.extend(held)
        for place, digest in zip(rows, as_bytes(held_digests) if held_digests is not None else (), strict=True):
            self._places.setdefault(digest, place)

    def holds_all(self, digests: Tensor, held_digests: Tensor | None) -> bool:
        """Whether the conditions of a chunk's examples are here, or in the chunk itself."""
        own = set(as_bytes(held_digests)) if held_digests is not None else set()
        return all(digest in self._places or digest in own for digest in as_bytes(digests))

    def batch(self, places: Iterable[tuple[int, int, int]]) -> Tensor:
        """[batch, rows, ...] the conditions at these places, of one size: chunk, example in the chunk, copy."""
        return torch.stack([self._at(place) for place in places])

    def size(self, place: tuple[int, int, int]) -> torch.Size:
        """The size of the condition at a place."""
        return self.parts[0].shape[1:] if self.is_uniform else self._at(place).shape

    @property
    def is_uniform(self) -> bool:
        """Whether all conditions have one size."""
        return len({part.shape[1:] for part in self.parts}) == 1

    def _at(self, place: tuple[int, int, int]) -> Tensor:
        chunk, example, copy = place
        part, row = self._places[bytes(self.digests[chunk][example, copy].tolist())]
        return self.parts[part][row]


def split_conditions(
    conditions: Sequence[Sequence[Tensor]], earlier: Sequence[DistinctConditions]
) -> dict[str, Tensor]:
    """What a chunk keeps of its conditions: all digests, and what is new.

    The names are those that `chunk_conditions` reads.

    Args:
        conditions: of each argument, of some examples together, [examples, copies, rows, ...].
        earlier: what the chunks before hold.
    """
    kept: dict[str, Tensor] = {}
    for argument, batches in enumerate(conditions):
        rows = [row for tensor in batches for row in tensor.flatten(0, 1)]
        digests = [condition_digest(row) for row in rows]
        new = {digest: row for digest, row in zip(digests, rows, strict=True) if digest not in earlier[argument]}
        sizes: dict[torch.Size, list[bytes]] = {}
        for digest, row in new.items():
            sizes.setdefault(row.shape, []).append(digest)
        kept[f"digests.{argument}"] = as_tensor(digests).reshape(-1, batches[0].shape[1], DIGEST_BYTES)
        for number, held in enumerate(sizes.values()):
            kept[f"new.{argument}.{number}"] = torch.stack([new[digest] for digest in held])
        if new:
            kept[f"new_digests.{argument}"] = as_tensor([digest for held in sizes.values() for digest in held])
    return kept


def chunk_conditions(chunk: Mapping[str, Tensor], argument: int) -> tuple[Tensor, list[Tensor], Tensor | None]:
    """Digests of the examples, new conditions by size and their digests, as `split_conditions` wrote them."""
    start = f"new.{argument}."
    numbers = sorted(int(name.removeprefix(start)) for name in chunk if name.startswith(start))
    held = [chunk[f"{start}{number}"] for number in numbers]
    return chunk[f"digests.{argument}"], held, chunk.get(f"new_digests.{argument}")


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
