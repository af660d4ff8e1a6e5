"""CLIP-IQA: how likely CLIP calls it a good photo rather than a bad one. It needs pip install torchmetrics piq.

ldpruner evaluate --run runs/a --scorer clip_iqa:score

Source: Wang et al., arXiv 2207.12396.
"""

import functools
from typing import Any

import numpy as np
import torch
from torchmetrics.multimodal import CLIPImageQualityAssessment

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@functools.cache
def metric() -> Any:
    """The metric of torchmetrics, for pixels of 0 to 255."""
    return CLIPImageQualityAssessment(data_range=255.0, prompts=("quality",)).to(DEVICE)


def score(samples: list[Any], prompts: list[str] | None) -> torch.Tensor:
    """Scores pictures from 0 to 1; the prompts do not matter."""
    pixels = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in samples])
    scores: torch.Tensor = metric()(pixels.float().to(DEVICE))
    metric().reset()
    return scores
