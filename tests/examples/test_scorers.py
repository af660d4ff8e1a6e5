"""The examples score samples; packages that are not installed are stand-ins of their documented signatures."""

import importlib
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.multimodal import CLIPImageQualityAssessment
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from ldpruner.evaluation.samples import SampleBatch
from ldpruner.evaluation.scorers import find_scorers

EXAMPLES = Path(__file__).parents[2] / "examples" / "scorers"
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 1, 24, 24, 3), dtype=np.uint8)
BATCH = SampleBatch(pictures=PICTURES, prompts=("a cat", "the blue sea", "a dog"))


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


def scores(name: str, batch: SampleBatch = BATCH) -> Any:
    (scorer,) = find_scorers([name])
    assert scorer.higher_is_better
    return scorer(batch)


def test_the_aesthetic_score_is_a_head_on_clip_features_of_length_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = CLIPVisionModelWithProjection(CLIPVisionConfig(**size, image_size=16, patch_size=8, projection_dim=8))
    network.eval().save_pretrained(tmp_path)
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor.save_pretrained(tmp_path)
    head = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Dropout(), torch.nn.Linear(4, 1)).eval()
    torch.save({f"layers.{name}": weight for name, weight in head.state_dict().items()}, tmp_path / "head.pth")

    aesthetic = importlib.import_module("aesthetic")
    monkeypatch.setattr(aesthetic, "CLIP", str(tmp_path))
    monkeypatch.setattr(aesthetic, "HEAD", str(tmp_path / "head.pth"))
    inputs = processor(images=[Image.fromarray(video[0]) for video in PICTURES], return_tensors="pt")
    with torch.no_grad():
        features = network(**inputs).image_embeds
        expected = head(features / features.norm(dim=1, keepdim=True))[:, 0]
    np.testing.assert_allclose(scores("aesthetic:score"), expected, rtol=1e-4)


def test_image_reward_scores_each_picture_for_its_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        def score(self, prompt: str, image: Image.Image) -> float:
            return len(prompt) + float(np.asarray(image).mean())

    def load(name: str = "ImageReward-v1.0", device: str = "cpu", download_root: str | None = None) -> Model:
        assert name == "ImageReward-v1.0"
        return Model()

    monkeypatch.setitem(sys.modules, "ImageReward", module("ImageReward", load=load))
    np.testing.assert_allclose(scores("image_reward:score"), expected_of_pairs())


def test_hpsv2_scores_each_picture_for_its_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    def score(imgs_path: Any, prompt: str, hps_version: str = "v2.0") -> list[np.float32]:
        assert isinstance(imgs_path, Image.Image)
        assert hps_version == "v2.1"
        return [np.float32(len(prompt) + np.asarray(imgs_path).mean())]

    monkeypatch.setitem(sys.modules, "hpsv2", module("hpsv2", score=score))
    np.testing.assert_allclose(scores("hps:score"), expected_of_pairs(), rtol=1e-6)


def expected_of_pairs() -> list[float]:
    pairs = zip(PICTURES, BATCH.prompts, strict=True)
    return [len(prompt) + float(video.mean()) for video, prompt in pairs]


def module(name: str, **contents: Any) -> ModuleType:
    stand_in = ModuleType(name)
    vars(stand_in).update(contents)
    return stand_in


@pytest.mark.parametrize("count", [3, 1])
def test_clip_iqa_scores_each_picture(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own CLIP needs piq; the stand-in takes what the class of torchmetrics takes."""
    signature = inspect.signature(CLIPImageQualityAssessment)

    class Metric:
        def __init__(self, **options: Any) -> None:
            bound = signature.bind(**options)
            self.data_range = bound.arguments["data_range"]

        def to(self, device: str) -> "Metric":
            return self

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            means: torch.Tensor = (images / self.data_range).mean(dim=(1, 2, 3))
            return means.squeeze()

        def reset(self) -> None:
            """Forgets."""

    monkeypatch.setattr("torchmetrics.multimodal.CLIPImageQualityAssessment", Metric)
    batch = SampleBatch(pictures=PICTURES[:count])
    np.testing.assert_allclose(scores("clip_iqa:score", batch), PICTURES[:count].mean((1, 2, 3, 4)) / 255, rtol=1e-5)
