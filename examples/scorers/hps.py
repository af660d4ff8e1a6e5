"""HPSv2: what people prefer for a prompt. It needs pip install hpsv2.

ldpruner evaluate --run runs/a --scorer hps:score

Source: Wu et al., arXiv 2306.09341, https://github.com/tgxs002/HPSv2.
"""

from typing import Any

import hpsv2


def score(samples: list[Any], prompts: list[str]) -> list[float]:
    """Scores each picture for its prompt; 0.2 to 0.35 are common."""
    pairs = zip(samples, prompts, strict=True)
    return [float(hpsv2.score(picture, prompt, hps_version="v2.1")[0]) for picture, prompt in pairs]
