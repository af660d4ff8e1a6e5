"""A judge of captioned pictures: two towers that meet where a picture and its caption are near to each other.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", figure 3.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from zoo.data import to_signal
from zoo.eye import Eye, convolutions
from zoo.training import Loss

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from zoo.captions import Captioned
    from zoo.data import Change

HIDDEN, MEETING = 160, 96

WORD = re.compile(r"\w+|[^\w\s]")


class Matcher(Eye):
    """Pictures in -1 to 1, [pictures, 3, height, width], and captions to scores, [pictures, captions].

    A caption is the bag of those of its words that the judge knows: `bags` makes them.
    """

    def __init__(self, words: tuple[str, ...], channels: int, seed: int) -> None:
        super().__init__()
        self.words = words
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = convolutions(channels)
            self.head = nn.Linear(self.num_features, MEETING)
            self.text = nn.Sequential(nn.Linear(len(words), HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, MEETING))
            self.sharpness = nn.Parameter(torch.tensor(2.5))

    def forward(self, images: Tensor, captions: Tensor) -> Tensor:
        seen = normalize(self.head(self.features(images)))
        read = normalize(self.text(captions))
        scores: Tensor = self.sharpness.exp() * seen @ read.T
        return scores

    def bags(self, captions: Sequence[str]) -> Tensor:
        """The words of each caption, as shares of its known words: [captions, words]."""
        place = {word: index for index, word in enumerate(self.words)}
        bags = torch.zeros(len(captions), len(self.words))
        for bag, caption in zip(bags, captions, strict=True):
            bag[[place[word] for word in split(caption) if word in place]] = 1
        return normalize(bags)


def split(caption: str) -> list[str]:
    """The words and signs of a caption, in lower case."""
    return WORD.findall(caption.lower())


def known_words(captions: Iterable[str]) -> tuple[str, ...]:
    """Every word of the captions, in the order of the alphabet."""
    return tuple(sorted({word for caption in captions for word in split(caption)}))


def matching(pictures: Captioned, bags: Tensor, change: Change) -> Loss:
    """The loss of a matcher: each picture shall find its caption among those of the batch, and the other way."""

    def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randperm(len(pictures), generator=generator)[:batch]
        seen = change(to_signal(pictures.pixels[chosen]), generator)
        return seen.contiguous(memory_format=torch.channels_last), bags[chosen]

    def value(module: nn.Module, seen: Tensor, read: Tensor) -> Tensor:
        scores = module(seen, read)
        right = torch.arange(len(scores), device=scores.device)
        return 0.5 * (cross_entropy(scores, right) + cross_entropy(scores.T, right))

    return Loss(draw, value)


@torch.no_grad()
def match(judge: Matcher, pixels: Tensor, captions: Sequence[str]) -> Tensor:
    """How well each caption fits each picture, given as bytes: scores, [pictures, captions]."""
    bags = judge.bags(captions)
    return torch.cat([judge(to_signal(part), bags) for part in pixels.split(500)])
