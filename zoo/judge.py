"""The judges of the zoo on disk: `read_judge("zoo/emoji")` opens the one that measured a model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from zoo.classifier import Classifier
from zoo.eye import LAYERS
from zoo.matcher import Matcher

if TYPE_CHECKING:
    from pathlib import Path
    from typing import TypeAlias

Judge: TypeAlias = "Classifier | Matcher"


def write_judge(judge: Judge, folder: Path) -> None:
    """Write `judge.safetensors` and `judge.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in judge.state_dict().items()}
    save_file(weights, folder / "judge.safetensors")
    known: dict[str, Any] = {"classes": judge.classes} if isinstance(judge, Classifier) else {"words": judge.words}
    settings = {**known, "layers": LAYERS, "features": judge.num_features}
    (folder / "judge.json").write_text(json.dumps(settings, indent=2) + "\n")


def read_judge(folder: Path) -> Judge:
    """The judge that `write_judge` wrote."""
    settings = json.loads((folder / "judge.json").read_text())
    weights = load_file(folder / "judge.safetensors")
    channels = weights["body.0.weight"].shape[1]
    judge: Judge
    if "classes" in settings:
        judge = Classifier(tuple(settings["classes"]), channels, seed=0)
    else:
        judge = Matcher(tuple(settings["words"]), channels, seed=0)
    judge.load_state_dict(weights)
    return judge.eval()
