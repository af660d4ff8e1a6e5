"""ImageReward: what people prefer for a prompt. It needs pip install image-reward.

ldpruner evaluate --run runs/a --scorer image_reward:score

Source: Xu et al., arXiv 2304.05977, https://github.com/THUDM/ImageReward.
"""

import functools
from typing import Any

import ImageReward


@functools.cache
def model() -> Any:
    """The published model, downloaded the first time."""
    return ImageReward.load("ImageReward-v1.0")


def score(samples: list[Any], prompts: list[str]) -> list[float]:
    """Scores each picture for its prompt; the mean over many is about 0, the deviation about 1."""
    return [model().score(prompt, picture) for prompt, picture in zip(prompts, samples, strict=True)]
