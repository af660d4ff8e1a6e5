"""How much people like a picture: the LAION aesthetic predictor, 1 to 10, on CLIP features.

ldpruner evaluate --run runs/a --scorer aesthetic:score

Source: https://github.com/christophschuhmann/improved-aesthetic-predictor, which also has the file of the head.
"""

import functools
from typing import Any

import torch
from torch.nn import functional
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

CLIP = "openai/clip-vit-large-patch14"
HEAD = "sac+logos+ava1-l14-linearMSE.pth"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@functools.cache
def models() -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """The network, its processor, and the weights of the head: linear layers without anything between them."""
    network = CLIPVisionModelWithProjection.from_pretrained(CLIP).eval().to(DEVICE)
    return network, CLIPImageProcessor.from_pretrained(CLIP), torch.load(HEAD, map_location=DEVICE, weights_only=True)


def score(samples: list[Any], prompts: list[str] | None) -> torch.Tensor:
    """Scores pictures; the prompts do not matter."""
    network, processor, head = models()
    features = network(**processor(images=samples, return_tensors="pt").to(DEVICE)).image_embeds
    features = functional.normalize(features, dim=1)
    layers = sorted({name.rpartition(".")[0] for name in head}, key=lambda name: int(name.rpartition(".")[2]))
    for layer in layers:
        features = functional.linear(features, head[f"{layer}.weight"], head[f"{layer}.bias"])
    return features
