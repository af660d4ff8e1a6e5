"""The zoo's feature networks on disk: `read_feature_network("zoo/emoji")` opens the one that measured a model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from zoo.classifier import Classifier
from zoo.features import LAYERS
from zoo.matcher import Matcher

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS, SETTINGS = "feature_network.safetensors", "feature_network.json"


def write_feature_network(network: Classifier | Matcher, folder: Path) -> None:
    """Writes `feature_network.safetensors` and `feature_network.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, folder / WEIGHTS)
    head: dict[str, Any] = (
        {"classes": network.classes} if isinstance(network, Classifier) else {"words": network.words}
    )
    settings = {**head, "layers": LAYERS, "features": network.num_features}
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def read_feature_network(folder: Path) -> Classifier | Matcher:
    """Reads what `write_feature_network` wrote."""
    settings, weights = json.loads((folder / SETTINGS).read_text()), load_file(folder / WEIGHTS)
    channels = weights["body.0.weight"].shape[1]
    network: Classifier | Matcher
    if "classes" in settings:
        network = Classifier(tuple(settings["classes"]), channels, seed=0)
    else:
        network = Matcher(tuple(settings["words"]), channels, seed=0)
    network.load_state_dict(weights)
    return network.eval()
