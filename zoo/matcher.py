"""The feature network of captioned pictures: an image tower and a text tower, trained as CLIP is.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", figure 3.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from zoo.data import to_signal
from zoo.features import FeatureNetwork, convolutions
from zoo.training import Loss

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from zoo.captions import Captioned
    from zoo.data import Augmentation

HIDDEN_SIZE, EMBEDDING_SIZE = 160, 96

WORD = re.compile(r"\w+|[^\w\s]")


class Matcher(FeatureNetwork):
    """Pictures in -1 to 1, [pictures, 3, height, width], and captions to logits, [pictures, captions].

    A caption is the bag of those of its words that are in the vocabulary: `bags` makes them.
    """

    def __init__(self, words: tuple[str, ...], channels: int, seed: int) -> None:
        super().__init__()
        self.words = words
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = convolutions(channels)
            self.head = nn.Linear(self.num_features, EMBEDDING_SIZE)
            layers = (nn.Linear(len(words), HIDDEN_SIZE), nn.ReLU(), nn.Linear(HIDDEN_SIZE, EMBEDDING_SIZE))
            self.text = nn.Sequential(*layers)
            self.sharpness = nn.Parameter(torch.tensor(2.5))

    def forward(self, images: Tensor, captions: Tensor) -> Tensor:
        image_embeddings = normalize(self.head(self.features(images)))
        text_embeddings = normalize(self.text(captions))
        logits: Tensor = self.sharpness.exp() * image_embeddings @ text_embeddings.T
        return logits

    def bags(self, captions: Sequence[str]) -> Tensor:
        """The words of each caption, as a unit vector over the vocabulary: [captions, words]."""
        indices = {word: index for index, word in enumerate(self.words)}
        bags = torch.zeros(len(captions), len(self.words))
        for bag, caption in zip(bags, captions, strict=True):
            bag[[indices[word] for word in split(caption) if word in indices]] = 1
        return normalize(bags)


def split(caption: str) -> list[str]:
    """The words and signs of a caption, in lower case."""
    return WORD.findall(caption.lower())


def vocabulary(captions: Iterable[str]) -> tuple[str, ...]:
    """Every word of the captions, sorted."""
    return tuple(sorted({word for caption in captions for word in split(caption)}))


def contrastive(pictures: Captioned, bags: Tensor, augment: Augmentation) -> Loss:
    """The contrastive loss of a matcher: each picture shall match its caption within the batch, and the reverse."""

    def sample(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randperm(len(pictures), generator=generator)[:batch]
        augmented = augment(to_signal(pictures.pixels[chosen]), generator)
        return augmented.contiguous(memory_format=torch.channels_last), bags[chosen]

    def value(module: nn.Module, augmented: Tensor, captions: Tensor) -> Tensor:
        logits = module(augmented, captions)
        labels = torch.arange(len(logits), device=logits.device)
        return 0.5 * (cross_entropy(logits, labels) + cross_entropy(logits.T, labels))

    return Loss(sample, value)


@torch.no_grad()
def match(matcher: Matcher, pixels: Tensor, captions: Sequence[str]) -> Tensor:
    """How well each caption fits each picture, given as bytes: logits, [pictures, captions]."""
    bags = matcher.bags(captions)
    return torch.cat([matcher(to_signal(part), bags) for part in pixels.split(500)])
