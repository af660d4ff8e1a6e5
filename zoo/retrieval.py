"""How well pictures follow their captions, by the word of a matcher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from zoo.captions import caption
from zoo.matcher import match

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.captions import Captioned
    from zoo.matcher import Matcher


def retrieval(judge: Matcher, pixels: Tensor, pictures: Captioned) -> dict[str, Any]:
    """How often each of `pixels` finds its caption among those of `pictures`, and its style among all styles.

    `first` and `five`: shares of pictures whose own caption fits best, or is among the five that fit best.
    """
    scores = match(judge, pixels, pictures.captions)
    own = scores.diagonal()[:, None]
    rank = (scores > own).sum(1)
    return {
        "count": len(pictures),
        "first": float((rank < 1).float().mean()),
        "five": float((rank < 5).float().mean()),
        "style": _style(judge, pixels, pictures),
    }


def _style(judge: Matcher, pixels: Tensor, pictures: Captioned) -> float:
    """The share of pictures whose style fits best, where the name is told."""
    styles = sorted(set(pictures.styles))
    told = [[caption(name, style) for name in pictures.names] for style in styles]
    scores = torch.stack([match(judge, pixels, captions).diagonal() for captions in told], 1)
    right = torch.tensor([styles.index(style) for style in pictures.styles])
    return float((scores.argmax(1) == right).float().mean())
