"""Feature networks: tiny ones of transformers on disk, with random weights."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torchmetrics import Metric
from transformers import (
    BertConfig,
    BertModel,
    BitImageProcessor,
    ClapAudioConfig,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedTokenizerFast,
)

import ldpruner
from ldpruner.errors import EvaluationError
from ldpruner.evaluation.evaluate import evaluate
from ldpruner.evaluation.features import (
    Classifier,
    InceptionFeatures,
    LatentFeatures,
    Lpips,
    find_clip,
    find_dino,
    find_extractor,
    find_lpips,
)
from ldpruner.evaluation.samples import SampleBatch, sample_batch
from tests.conftest import WORDS

CPU = torch.device("cpu")
RANDOM = np.random.default_rng(0)
SOUNDS = SampleBatch(sounds=tuple(RANDOM.normal(0, 0.1, (2, 4000)) for _ in range(3)), sampling_rate=8000)
VIDEOS = SampleBatch(
    pictures=RANDOM.integers(0, 256, (3, 2, 24, 32, 3), dtype=np.uint8), prompts=("a cat", "the sea", "a dog")
)
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def processor() -> Any:
    return CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vision")
    torch.manual_seed(0)
    CLIPVisionModel(CLIPVisionConfig(**VISION, image_size=16, patch_size=8)).save_pretrained(path)
    processor().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<pad>")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", model_max_length=8)
    text = CLIPTextConfig(
        **VISION, vocab_size=len(WORDS), max_position_embeddings=8, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    config = CLIPConfig(
        text_config=text.to_dict(),
        vision_config=CLIPVisionConfig(**VISION, image_size=16, patch_size=8).to_dict(),
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(path)
    CLIPProcessor(processor(), tokenizer).save_pretrained(path)
    return path


def test_latents_are_pooled_over_space_by_mean_and_deviation() -> None:
    latents = RANDOM.normal(size=(5, 3, 4, 6))
    features = LatentFeatures()(SampleBatch(latents=latents))
    expected = [
        [*(channel.mean() for channel in sample), *(channel.std() for channel in sample)] for sample in latents
    ]
    np.testing.assert_allclose(features, expected)


def test_tokens_are_pooled_over_their_positions_either_way_round() -> None:
    tokens = RANDOM.normal(size=(5, 12, 3))
    turned = LatentFeatures()(SampleBatch(latents=tokens.swapaxes(1, 2)))
    np.testing.assert_array_equal(LatentFeatures()(SampleBatch(latents=tokens)), turned)
    assert turned.shape == (5, 6)


def test_a_network_for_pictures_gives_its_pooled_output_the_mean_over_frames(vision: Path) -> None:
    features = find_extractor(str(vision), CPU)(VIDEOS)
    network = CLIPVisionModel.from_pretrained(vision).eval()
    assert VIDEOS.pictures is not None
    with torch.no_grad():
        for row, video in zip(features, VIDEOS.pictures, strict=True):
            pixels = processor()(images=list(video), return_tensors="pt")
            expected = network(**pixels).pooler_output.mean(0).double().numpy()
            np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-5)


def test_a_network_of_texts_and_pictures_gives_its_projection_of_pictures(clip: Path) -> None:
    assert find_extractor(str(clip), CPU)(VIDEOS).shape == (3, 8)


def test_the_clip_score_is_that_of_the_whole_model(clip: Path) -> None:
    towers = find_clip(str(clip), CPU)
    scores = towers.score(towers(VIDEOS), VIDEOS.prompts)
    model = CLIPModel.from_pretrained(clip).eval()
    both = CLIPProcessor.from_pretrained(clip)
    assert VIDEOS.pictures is not None
    for score, video, prompt in zip(scores, VIDEOS.pictures, VIDEOS.prompts, strict=True):
        inputs = both(text=[prompt], images=list(video), return_tensors="pt")
        with torch.no_grad():
            cosines = model(**inputs).logits_per_text / model.logit_scale.exp()
        assert score == pytest.approx(max(0.0, 100 * float(cosines.mean())), rel=1e-4)
    assert len(set(scores)) > 1


def test_an_evaluation_has_the_clip_score_of_pipelines_that_take_prompts(
    tiny_text: DiffusionPipeline, clip: Path
) -> None:
    probe = ldpruner.Probe(samples=5, steps=1, prompts=("a cat", "the sea", "a dog on the moon"))
    result = evaluate(tiny_text, tiny_text, probe, clip=str(clip), metrics=("clip_score",))
    (row,) = result.metrics
    seeds = probe.replace(seed=1)
    batch = sample_batch(tiny_text, seeds, range(5))
    assert batch.prompts == ("a cat", "the sea", "a dog on the moon", "a cat", "the sea")
    towers = find_clip(str(clip), CPU)
    assert row.pruned == row.original == pytest.approx(towers.score(towers(batch), batch.prompts).mean(), rel=1e-3)
    assert (row.difference, row.difference_interval) == (0, (0, 0))
    assert row.noise_floor is not None
    assert result.protocol["clip"] == str(clip)


def test_sounds_pass_one_by_one_at_the_sampling_rate_of_the_network(tmp_path: Path) -> None:
    audio = ClapAudioConfig(
        hidden_size=16,
        patch_embeds_hidden_size=8,
        depths=[1, 1],
        num_attention_heads=[1, 1],
        spec_size=64,
        num_mel_bins=16,
        window_size=2,
    )
    text = ClapTextConfig(vocab_size=9, **VISION, max_position_embeddings=8)
    torch.manual_seed(0)
    config = ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=8)
    ClapModel(config).save_pretrained(tmp_path)
    hearing = {"feature_size": 16, "sampling_rate": 16000, "max_length_s": 1, "frequency_max": 8000}
    ClapFeatureExtractor(**hearing, truncation="rand_trunc").save_pretrained(tmp_path)
    extractor = find_extractor(str(tmp_path), CPU)
    features = extractor(SOUNDS)
    assert features.shape == (3, 8)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-4)
    assert SOUNDS.sounds is not None
    alone = extractor(SampleBatch(sounds=SOUNDS.sounds[1:2], sampling_rate=8000))
    np.testing.assert_array_equal(alone[0], features[1])


def test_a_network_without_all_its_weights_is_refused(vision: Path, tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((vision / name).read_bytes())
    weights = load_file(vision / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "post_layernorm" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EvaluationError, match="lacks weights"):
        find_extractor(str(tmp_path), CPU)


@pytest.mark.parametrize("name", ["nothing-here", "no one/at all"])
def test_a_missing_network_raises_in_one_line(name: str) -> None:
    with pytest.raises(EvaluationError, match=name) as caught:
        find_extractor(name, CPU)
    assert "\n" not in str(caught.value)


def test_a_network_for_texts_is_refused(tmp_path: Path) -> None:
    BertModel(BertConfig(vocab_size=9, **VISION)).save_pretrained(tmp_path)
    with pytest.raises(EvaluationError, match="neither pictures nor sounds"):
        find_extractor(str(tmp_path), CPU)


def test_clip_features_have_length_one_and_need_no_prompts(clip: Path) -> None:
    pictures = SampleBatch(pictures=VIDEOS.pictures[:, :1] if VIDEOS.pictures is not None else None)
    features = find_clip(str(clip), CPU)(pictures)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1)
    own = find_extractor(str(clip), CPU)(pictures)
    np.testing.assert_allclose(features, own / np.linalg.norm(own, axis=1, keepdims=True), rtol=1e-5)


def test_dino_features_are_those_of_the_class_token(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Dinov2Model(Dinov2Config(**VISION, image_size=16, patch_size=8)).eval()
    network.save_pretrained(tmp_path)
    resizing = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    BitImageProcessor(**resizing).save_pretrained(tmp_path)  # as DINOv2 has on the Hub
    assert VIDEOS.pictures is not None
    features = find_dino(str(tmp_path), CPU)(VIDEOS)
    inputs = BitImageProcessor(**resizing)(images=list(VIDEOS.pictures[0]), return_tensors="pt")
    with torch.no_grad():
        expected = network(**inputs).last_hidden_state[:, 0].mean(0)
    np.testing.assert_allclose(features[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["latents", "inception", "nothing-here"])
def test_what_is_no_network_for_pictures_gives_no_dino_distance(name: str) -> None:
    with pytest.raises(EvaluationError, match=name) as caught:
        find_dino(name, CPU)
    assert "\n" not in str(caught.value)


def test_lpips_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EvaluationError, match="lpips 'resnet' does not exist; accepted: alex, vgg, squeeze"):
        find_lpips("resnet", CPU)  # type: ignore[arg-type]
    monkeypatch.setattr("torchmetrics.image.lpip._TORCHVISION_AVAILABLE", False)
    with pytest.raises(EvaluationError, match=r"torchvision is installed.*pip install"):
        find_lpips("alex", CPU)


def test_lpips_is_of_each_sample_with_its_own_original_the_mean_over_frames() -> None:

    class Network(Metric):
        """A stand-in that takes two pictures as LPIPS of torchmetrics does: [1, 3, height, width] in 0 to 1."""

        full_state_update = False
        all_scores: list[torch.Tensor]

        def __init__(self) -> None:
            super().__init__()
            self.add_state("all_scores", default=[], dist_reduce_fx=None)

        def update(self, first: torch.Tensor, second: torch.Tensor) -> None:
            assert not self.all_scores
            assert first.shape == (1, 3, 24, 32)
            assert 0 <= float(first.min()) <= float(first.max()) <= 1
            self.all_scores.append((first - second).abs().mean())

        def compute(self) -> torch.Tensor:
            return torch.stack(self.all_scores).mean()

    assert VIDEOS.pictures is not None
    others = VIDEOS.pictures[[1, 2, 0]]
    distances = Lpips(Network(), CPU)(VIDEOS.pictures, others)
    apart = np.abs(VIDEOS.pictures.astype(float) - others).mean((1, 2, 3, 4)) / 255
    np.testing.assert_allclose(distances, apart, rtol=1e-5)


def test_a_network_without_texts_gives_no_clip_score(vision: Path) -> None:
    with pytest.raises(EvaluationError, match="no CLIPModel"):
        find_clip(str(vision), CPU)


def test_features_of_missing_latents_or_pictures_raise(vision: Path) -> None:
    with pytest.raises(EvaluationError, match="files have no latents"):
        LatentFeatures()(VIDEOS)
    with pytest.raises(EvaluationError, match="for pictures"):
        find_extractor(str(vision), CPU)(SOUNDS)


def test_inception_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(EvaluationError, match="torch-fidelity torchvision"):
        find_extractor("inception", CPU)


def test_inception_classifies_its_own_features() -> None:
    class Network(torch.nn.Module):
        """The interface of the torchmetrics network: features of bytes, and a last layer."""

        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(3, 4)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            assert pixels.dtype == torch.uint8
            return pixels.float().mean((2, 3)) / 255

    network = Network()
    extractor = InceptionFeatures(network, CPU)
    features = extractor(VIDEOS)
    assert isinstance(extractor, Classifier)
    assert VIDEOS.pictures is not None
    np.testing.assert_allclose(features, VIDEOS.pictures.mean((1, 2, 3)) / 255, rtol=1e-5)
    logits = torch.from_numpy(features).float() @ network.fc.weight.T
    np.testing.assert_allclose(extractor.probabilities(features), logits.softmax(1).detach().numpy(), rtol=1e-5)
