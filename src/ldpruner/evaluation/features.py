"""Features in which samples are compared: of their latents, or of a network for pictures or sounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, get_args, runtime_checkable

import numpy as np
import scipy.special
import torch
from torch import nn
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoProcessor,
    ClapModel,
    CLIPModel,
    SiglipModel,
)

from ldpruner.errors import EvaluationError, one_line
from ldpruner.evaluation.media import resampled
from ldpruner.evaluation.metrics import Pixels
from ldpruner.evaluation.samples import SampleBatch
from ldpruner.scoring.importance import Floats
from ldpruner.values import check_choice

SOUND_INPUTS = ("input_features", "input_values")  # the main inputs of networks for sounds


class Extractor(Protocol):
    """Computes features of samples; the features of one sample depend on no other."""

    @property
    def name(self) -> str:
        """The name in the protocol of an evaluation."""

    def __call__(self, batch: SampleBatch) -> Floats:
        """The features of some samples: [samples, features]."""


@runtime_checkable
class Classifier(Extractor, Protocol):
    """An extractor that also classifies its features, as the inception score needs."""

    def probabilities(self, features: Floats) -> Floats:
        """The probability of each class: [samples, classes]."""


Features: TypeAlias = Extractor | str
LpipsNetwork: TypeAlias = Literal["alex", "vgg", "squeeze"]


class LatentFeatures:
    """The mean and the standard deviation over space of each channel of the latents.

    The means are the colours of a picture or the loudness of a sound; the deviations tell detail from blur. With so
    few features a few dozen samples have a covariance of full rank.
    """

    name = "latents"

    def __call__(self, batch: SampleBatch) -> Floats:
        """[samples, 2 * channels]; latents [samples, features], which have no space, are returned as they are."""
        if batch.latents is None:
            raise EvaluationError("files have no latents to compare; choose features: inception, a folder or a Hub id")
        if batch.latents.ndim == 2:
            return batch.latents
        latents = batch.latents
        if latents.ndim == 3 and latents.shape[1] > latents.shape[2]:  # tokens, which outnumber their channels
            latents = latents.swapaxes(1, 2)
        channels = latents.reshape(*latents.shape[:2], -1)
        return np.concatenate([channels.mean(axis=2), channels.std(axis=2)], axis=1)


@dataclass(frozen=True)
class InceptionFeatures:
    """The 2048 features of the Inception network behind most published FIDs, as torchmetrics has it.

    Source: Heusel et al., arXiv 1706.08500; weights from torch-fidelity.
    """

    network: Any
    device: torch.device
    name: str = "inception-v3-compat 2048"

    def __call__(self, batch: SampleBatch) -> Floats:
        """[samples, 2048]; a video has the mean over its frames."""

        def features(frames: Pixels) -> Any:
            return self.network(torch.from_numpy(frames).permute(0, 3, 1, 2).to(self.device))

        return _of_frames(batch, features, self.name)

    def probabilities(self, features: Floats) -> Floats:
        """[samples, 1008], from the last layer without its bias, as is usual for inception scores."""
        weight = self.network.fc.weight.detach().double().cpu().numpy()
        return np.asarray(scipy.special.softmax(features @ weight.T, axis=1))


@dataclass(frozen=True)
class _Network:
    """A transformers network and its processor."""

    network: Any
    processor: Any
    name: str


class PictureFeatures(_Network):
    """Features of pictures from a transformers network: its pooled output, or the mean of its last hidden states."""

    def __call__(self, batch: SampleBatch) -> Floats:
        """[samples, features]; a video has the mean over its frames."""

        def features(frames: Pixels) -> torch.Tensor:
            inputs = self.processor(images=list(frames), return_tensors="pt").to(self.network.device)
            two_towers = isinstance(self.network, (CLIPModel, SiglipModel))
            return _pooled((self.network.get_image_features if two_towers else self.network)(**inputs))

        return _of_frames(batch, features, self.name)


class SoundFeatures(_Network):
    """Features of sounds from a transformers network: its pooled output, or the mean of its last hidden states."""

    def __call__(self, batch: SampleBatch) -> Floats:
        """[samples, features], of mono sound at the network's own sampling rate."""
        if batch.sounds is None or batch.sampling_rate is None:
            raise EvaluationError(f"{self.name} is a network for sounds, but there are none; choose other features")
        # One at a time: padding of a batch would change the features, and CLAP picks one of a batch at random.
        return np.concatenate([self._features(sound, batch.sampling_rate) for sound in batch.sounds])

    @torch.no_grad()
    def _features(self, sound: Floats, rate: int) -> Floats:
        own_rate = int(self.processor.sampling_rate)
        wave = resampled(sound.mean(axis=0, keepdims=True), rate, own_rate)[0]
        is_clap = isinstance(self.network, ClapModel)
        if is_clap:
            wave = wave[: self.processor.nb_max_samples]  # it crops longer ones at random
        inputs = self.processor(wave, sampling_rate=own_rate, return_tensors="pt").to(self.network.device)
        return _numpy(_pooled((self.network.get_audio_features if is_clap else self.network)(**inputs)))


class Clip(_Network):
    """The two towers of a CLIP model: features of pictures, and how well they match their prompts."""

    def __call__(self, batch: SampleBatch) -> Floats:
        """[samples, features], of length 1; a video has the mean over its frames."""

        def features(frames: Pixels) -> torch.Tensor:
            inputs = self.processor.image_processor(images=list(frames), return_tensors="pt").to(self.network.device)
            return nn.functional.normalize(_pooled(self.network.get_image_features(**inputs)), dim=1)

        return _of_frames(batch, features, self.name)

    def score(self, features: Floats, prompts: Sequence[str]) -> Floats:
        """100 times the cosine of a picture and its prompt, at least 0: [samples]; of a video the mean over frames.

        Source: Hessel et al., arXiv 2104.08718.
        """
        inputs = self.processor.tokenizer(list(prompts), return_tensors="pt", padding=True, truncation=True)
        with torch.no_grad():
            texts = _numpy(_pooled(self.network.get_text_features(**inputs.to(self.network.device))))
        cosines = (features * texts).sum(axis=1) / np.linalg.norm(texts, axis=1)
        return np.asarray(np.maximum(100 * cosines, 0))


@dataclass(frozen=True)
class Lpips:
    """LPIPS, as torchmetrics has it: the distance of pictures in a network trained on what people see as similar.

    Source: Zhang et al., arXiv 1801.03924.
    """

    network: Any
    device: torch.device

    def __call__(self, pictures: Pixels, originals: Pixels) -> Floats:
        """The distance of each sample from its original [samples], the mean over frames.

        Args:
            pictures, originals: [samples, frames, height, width, 3].
        """
        videos = zip(pictures, originals, strict=True)
        return np.array([np.mean([self._distance(*pair) for pair in zip(*video, strict=True)]) for video in videos])

    @torch.no_grad()
    def _distance(self, *frames: Pixels) -> float:
        tensors = [torch.from_numpy(frame).permute(2, 0, 1)[None].to(self.device) / 255 for frame in frames]
        distance = float(self.network(*tensors))
        self.network.reset()  # it gathers all distances for their mean
        return distance


def find_extractor(features: Features, device: torch.device) -> Extractor:
    """Opens a feature network.

    Args:
        features: `latents`, `inception`, the folder or Hub id of a transformers network for pictures or sounds, or an
            extractor, which is returned as it is.
        device: where the network runs.

    Raises:
        EvaluationError: it cannot be opened.
    """
    if not isinstance(features, str):
        return features
    if features == "latents":
        return LatentFeatures()
    if features == "inception":
        return _open_inception(device)
    network = _open_network(features, device)
    if isinstance(network, ClapModel) or network.main_input_name in SOUND_INPUTS:
        return SoundFeatures(network, _open(AutoFeatureExtractor, features), features)
    if network.main_input_name == "pixel_values" or isinstance(network, (CLIPModel, SiglipModel)):
        return PictureFeatures(network, _open(AutoImageProcessor, features), features)
    raise EvaluationError(f"{features} is a {type(network).__name__}, a network for neither pictures nor sounds")


def find_clip(clip: str, device: torch.device) -> Clip:
    """Opens a CLIP model from a folder or a Hub id.

    Raises:
        EvaluationError: it cannot be opened, or is no CLIP model.
    """
    network = _open_network(clip, device)
    if not isinstance(network, CLIPModel):
        raise EvaluationError(f"{clip} is a {type(network).__name__} and no CLIPModel; give a CLIP model")
    return Clip(network, _open(AutoProcessor, clip), clip)


def find_dino(dino: str, device: torch.device) -> PictureFeatures:
    """Opens a network for pictures from a folder or a Hub id, such as DINOv2.

    Raises:
        EvaluationError: it cannot be opened, or is none for pictures.
    """
    extractor = find_extractor(dino, device) if dino not in ("latents", "inception") else None
    if not isinstance(extractor, PictureFeatures):
        raise EvaluationError(f"dino={dino!r} is no transformers network for pictures; try facebook/dinov2-small")
    return extractor


def find_lpips(network: LpipsNetwork, device: torch.device) -> Lpips:
    """Opens LPIPS with the network `alex`, `vgg` or `squeeze`.

    Raises:
        EvaluationError: there is no such network, its packages are missing, or its weights cannot be downloaded.
    """
    check_choice("lpips", network, get_args(LpipsNetwork), EvaluationError)
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        return Lpips(LearnedPerceptualImagePatchSimilarity(net_type=network, normalize=True).to(device), device)
    except (ImportError, OSError) as error:
        raise EvaluationError(
            f'lpips={network!r} cannot be opened: {one_line(error)}; pip install "ld-pruner[evaluation]" torchvision'
        ) from error


def _open_inception(device: torch.device) -> InceptionFeatures:
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        network = NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"]).to(device)
    except (ImportError, OSError) as error:
        raise EvaluationError(
            f'features "inception" cannot be opened: {one_line(error)}; '
            'pip install "ld-pruner[evaluation]" torch-fidelity torchvision, or choose a folder or a Hub id'
        ) from error
    return InceptionFeatures(network, device)


def _open_network(name: str, device: torch.device) -> Any:
    network, loading = _open(AutoModel, name, use_safetensors=True, output_loading_info=True)
    if loading["missing_keys"]:  # they would be random
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise EvaluationError(f"{name} lacks weights of {type(network).__name__}: {missing}; choose another network")
    return network.eval().to(device)


def _open(auto_class: Any, name: str, **options: Any) -> Any:
    """Opens a network or its processor, without running code of the folder."""
    try:
        return auto_class.from_pretrained(name, trust_remote_code=False, **options)
    except Exception as error:  # transformers raises many kinds
        raise EvaluationError(
            f"no feature network at {name!r}: {one_line(error)}; give a folder written by transformers' "
            "save_pretrained, or a Hub id such as owner/name"
        ) from error


def _pooled(output: Any) -> torch.Tensor:
    """One row for each sample: the pooled output of a network that has one."""
    if isinstance(output, torch.Tensor):  # of both towers, before transformers 5
        return output
    pooled = output.get("pooler_output")
    return pooled.flatten(1) if pooled is not None else output.last_hidden_state.mean(dim=1)  # type: ignore[no-any-return]


@torch.no_grad()
def _of_frames(batch: SampleBatch, features: Any, name: str) -> Floats:
    """The features of each frame, averaged over the frames of a sample."""
    if batch.pictures is None:
        raise EvaluationError(f"{name} is a network for pictures, but there are none; choose other features")
    samples, frames = batch.pictures.shape[:2]
    rows = _numpy(features(batch.pictures.reshape(-1, *batch.pictures.shape[2:])))
    return np.asarray(rows.reshape(samples, frames, -1).mean(axis=1))


def _numpy(tensor: torch.Tensor) -> Floats:
    return np.asarray(tensor.double().cpu().numpy())
