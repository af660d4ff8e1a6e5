"""How well pictures follow their captions: retrieval with a matcher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from zoo.captions import caption
from zoo.matcher import match

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.captions import Captioned
    from zoo.matcher import Matcher


def retrieval(matcher: Matcher, pixels: Tensor, pictures: Captioned) -> dict[str, Any]:
    """Recall of each caption by its picture among all captions, and accuracy of its style among all styles.

    `R@1` and `R@5`: shares of pictures whose own caption fits best, or is among the five that fit best.
    """
    logits = match(matcher, pixels, pictures.captions)
    rank = (logits > logits.diagonal()[:, None]).sum(1)
    return {
        "count": len(pictures),
        "R@1": float((rank < 1).float().mean()),
        "R@5": float((rank < 5).float().mean()),
        "style_accuracy": _style_accuracy(matcher, pixels, pictures),
    }


def _style_accuracy(matcher: Matcher, pixels: Tensor, pictures: Captioned) -> float:
    """The share of pictures whose style fits best, with the name of what they show given."""
    styles = sorted(set(pictures.styles))
    captions = [[caption(name, style) for name in pictures.names] for style in styles]
    logits = torch.stack([match(matcher, pixels, of_style).diagonal() for of_style in captions], 1)
    labels = torch.tensor([styles.index(style) for style in pictures.styles])
    return float((logits.argmax(1) == labels).float().mean())
