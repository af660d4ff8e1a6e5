"""A small classifier of the training data, whose features are where generated and real images are compared."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from zoo.data import to_signal, turned

if TYPE_CHECKING:
    from pathlib import Path

    from zoo.data import Images
    from zoo.training import Loss

# channels and stride of each convolution
LAYERS = ((24, 2), (48, 1), (64, 2), (96, 1), (128, 2), (96, 1))


class Judge(nn.Module):
    """Images in -1 to 1, [samples, 3, height, width], to one score per class, [samples, classes]."""

    num_features = LAYERS[-1][0]

    def __init__(self, classes: tuple[str, ...], seed: int) -> None:
        super().__init__()
        self.classes = classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = nn.Sequential(*_convolutions())
            self.head = nn.Linear(self.num_features, len(classes))

    def features(self, images: Tensor) -> Tensor:
        """What the last layer classifies: [samples, num_features]."""
        found: Tensor = self.body(images).mean((2, 3))
        return found

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.features(images))
        return scores


def _convolutions() -> list[nn.Module]:
    layers: list[nn.Module] = []
    width = 3
    for channels, stride in LAYERS:
        layers.append(nn.Conv2d(width, channels, 3, stride=stride, padding=1, bias=False))
        layers.extend((nn.BatchNorm2d(channels), nn.ReLU()))
        width = channels
    return layers


def classification(images: Images) -> Loss:
    """The loss of the judge: cross entropy on turned and mirrored images."""

    def loss(module: nn.Module, batch: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(images), (batch,), generator=generator)
        seen = turned(to_signal(images.pixels[chosen]), generator)
        scores = module(seen.contiguous(memory_format=torch.channels_last))
        return cross_entropy(scores, images.labels[chosen], label_smoothing=0.05)

    return loss


@torch.no_grad()
def classify(judge: Judge, pixels: Tensor) -> Tensor:
    """Class probabilities of images given as bytes: [samples, classes]."""
    parts = [judge(to_signal(part)).softmax(1) for part in pixels.split(500)]
    return torch.cat(parts)


def write_judge(judge: Judge, folder: Path) -> None:
    """Write `judge.safetensors` and `judge.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in judge.state_dict().items()}
    save_file(weights, folder / "judge.safetensors")
    settings = {"classes": judge.classes, "layers": LAYERS, "features": judge.num_features}
    (folder / "judge.json").write_text(json.dumps(settings, indent=2) + "\n")


def read_judge(folder: Path) -> Judge:
    """The judge that `write_judge` wrote."""
    settings = json.loads((folder / "judge.json").read_text())
    judge = Judge(tuple(settings["classes"]), seed=0)
    judge.load_state_dict(load_file(folder / "judge.safetensors"))
    return judge.eval()
