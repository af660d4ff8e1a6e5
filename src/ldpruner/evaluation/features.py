"""Where samples are compared: what networks, or none, make of their latents, pictures or sounds."""

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
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
from ldpruner.evaluation.drawn import SampleBatch
from ldpruner.evaluation.media import resampled
from ldpruner.evaluation.metrics import Pixels
from ldpruner.scoring.importance import Floats

SOUND_INPUTS = ("input_features", "input_values")  # what networks for sounds call theirs


class Extractor(Protocol):
    """Makes features of samples; each sample's depend on that sample only."""

    @property
    def name(self) -> str:
        """What the protocol of an evaluation says of it."""

    def __call__(self, drawn: SampleBatch) -> Floats:
        """The features of some samples: [samples, features]."""


@runtime_checkable
class Classifier(Protocol):
    """An extractor that tells classes by its features."""

    @property
    def name(self) -> str:
        """What the protocol of an evaluation says of it."""

    def __call__(self, drawn: SampleBatch) -> Floats:
        """The features of some samples: [samples, features]."""

    def probabilities(self, features: Floats) -> Floats:
        """Of each class: [samples, classes]."""


Features: TypeAlias = Extractor | str


class LatentFeatures:
    """The latents themselves: of each channel the mean over space, and the standard deviation over space.

    The means are the colours of a picture or the loudness of a sound, the deviations how much happens in it: what
    blurs leaves the means alone. So few features have a covariance of full rank from a few dozen samples on.
    """

    name = "latents"

    def __call__(self, drawn: SampleBatch) -> Floats:
        """Twice as many features as channels; latents [samples, features] without space are taken as they are."""
        if drawn.latents is None:
            raise EvaluationError("files have no latents to compare; choose features: inception, a folder or a Hub id")
        if drawn.latents.ndim == 2:
            return drawn.latents
        channels = _channels_first(drawn.latents)
        return np.concatenate([channels.mean(axis=2), channels.std(axis=2)], axis=1)


def _channels_first(latents: Floats) -> Floats:
    """Latents as [samples, channels, positions]; tokens come either way round, but are more than their channels."""
    if latents.ndim == 3 and latents.shape[1] > latents.shape[2]:
        latents = latents.swapaxes(1, 2)
    return latents.reshape(*latents.shape[:2], -1)


@dataclass(frozen=True)
class InceptionFeatures:
    """The 2048 features of the Inception network of most published Frechet distances, as torchmetrics has it.

    Source: Heusel et al., arXiv 1706.08500; weights from torch-fidelity.
    """

    network: Any
    device: torch.device
    name: str = "inception-v3-compat 2048"

    def __call__(self, drawn: SampleBatch) -> Floats:
        """[samples, 2048], of a video the mean over frames."""

        def features(frames: Pixels) -> torch.Tensor:
            found = self.network(torch.from_numpy(frames).permute(0, 3, 1, 2).to(self.device))
            assert isinstance(found, torch.Tensor)
            return found

        return _of_frames(drawn, features, self.name)

    def probabilities(self, features: Floats) -> Floats:
        """Of its 1008 classes, from the last layer without its bias, as inception scores are made."""
        weight = self.network.fc.weight.detach().double().cpu().numpy()
        logits = torch.from_numpy(features @ weight.T)
        return np.asarray(logits.softmax(dim=1).numpy())


@dataclass(frozen=True)
class PictureFeatures:
    """What a network of transformers makes of pictures: its pooled output, or the mean of its last hidden states."""

    network: Any
    processor: Any
    name: str

    def __call__(self, drawn: SampleBatch) -> Floats:
        """[samples, features], of a video the mean over frames."""

        def features(frames: Pixels) -> torch.Tensor:
            inputs = self.processor(images=list(frames), return_tensors="pt").to(self.network.device)
            two_towers = isinstance(self.network, (CLIPModel, SiglipModel))
            return _pooled((self.network.get_image_features if two_towers else self.network)(**inputs))

        return _of_frames(drawn, features, self.name)


@dataclass(frozen=True)
class SoundFeatures:
    """What a network of transformers makes of sounds: its pooled output, or the mean of its last hidden states."""

    network: Any
    processor: Any
    name: str

    def __call__(self, drawn: SampleBatch) -> Floats:
        """[samples, features], of the mean of the channels at the network's own sampling rate."""
        if drawn.sounds is None or drawn.sampling_rate is None:
            raise EvaluationError(f"{self.name} is a network for sounds, but there are none; choose other features")
        # Alone, as what pads a batch would be heard too, and CLAP picks one of a batch at random.
        return np.concatenate([self._one(sound, drawn.sampling_rate) for sound in drawn.sounds])

    @torch.no_grad()
    def _one(self, sound: Floats, rate: int) -> Floats:
        known = int(self.processor.sampling_rate)
        wave = resampled(sound.mean(axis=0, keepdims=True), rate, known)[0]
        is_clap = isinstance(self.network, ClapModel)
        if is_clap:
            wave = wave[: self.processor.nb_max_samples]  # it would take a random part of a longer one
        inputs = self.processor(wave, sampling_rate=known, return_tensors="pt").to(self.network.device)
        return _numpy(_pooled((self.network.get_audio_features if is_clap else self.network)(**inputs)))


@dataclass(frozen=True)
class ClipScore:
    """How well pictures fit their prompts: the CLIP score of Hessel et al. (arXiv 2104.08718), weighted with 100."""

    network: Any
    processor: Any
    name: str

    def __call__(self, drawn: SampleBatch) -> Floats:
        """100 times the cosine of each picture and its prompt, at least 0: [samples]; frames count as their mean."""
        if drawn.pictures is None or not drawn.prompts:
            raise EvaluationError("a CLIP score needs pictures that are drawn from prompts; leave out clip")
        inputs = self.processor.tokenizer(list(drawn.prompts), return_tensors="pt", padding=True, truncation=True)
        with torch.no_grad():
            texts = _numpy(_pooled(self.network.get_text_features(**inputs.to(self.network.device))))

        def features(frames: Pixels) -> torch.Tensor:
            shown = self.processor.image_processor(images=list(frames), return_tensors="pt").to(self.network.device)
            return nn.functional.normalize(_pooled(self.network.get_image_features(**shown)), dim=1)

        pictures = _of_frames(drawn, features, self.name)
        cosines = (pictures * texts).sum(axis=1) / np.linalg.norm(texts, axis=1)
        return np.asarray(np.maximum(100 * cosines, 0))


def find_extractor(features: Features, device: torch.device) -> Extractor:
    """Opens a feature network.

    Args:
        features: `latents`, `inception`, the folder or Hub id of a network of transformers for pictures or for
            sounds, or an extractor of one's own.
        device: where the network runs.

    Raises:
        EvaluationError: it cannot be opened.
    """
    if not isinstance(features, str):
        return features
    if features == "latents":
        return LatentFeatures()
    return _open_inception(device) if features == "inception" else _open_network(features, device)


def find_clip_score(clip: str, device: torch.device) -> ClipScore:
    """Opens a CLIP model: a folder, or a Hub id.

    Raises:
        EvaluationError: it cannot be opened, or is something else.
    """
    network = _open(AutoModel, clip).to(device)
    if not isinstance(network, CLIPModel):
        raise EvaluationError(f"{clip} is a {type(network).__name__} and no CLIPModel; give one of texts and pictures")
    return ClipScore(network, _open(AutoProcessor, clip), clip)


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


def _open_network(name: str, device: torch.device) -> Extractor:
    network = _open(AutoModel, name).to(device)
    if isinstance(network, ClapModel) or network.main_input_name in SOUND_INPUTS:
        return SoundFeatures(network, _open(AutoFeatureExtractor, name), name)
    if network.main_input_name == "pixel_values" or isinstance(network, (CLIPModel, SiglipModel)):
        return PictureFeatures(network, _open(AutoImageProcessor, name), name)
    raise EvaluationError(f"{name} is a {type(network).__name__}, a network for neither pictures nor sounds")


def _open(kind: Any, name: str) -> Any:
    """A network or what prepares its inputs, without unpickling and without code of the folder."""
    try:
        if kind is not AutoModel:
            return kind.from_pretrained(name, trust_remote_code=False)
        network, found = kind.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # what it raises depends on what is wrong with the files
        raise EvaluationError(
            f"no feature network at {name!r}: {one_line(error)}; give a folder that save_pretrained of transformers "
            "wrote, or a Hub id such as owner/name"
        ) from error
    if found["missing_keys"]:  # they would be random
        missing = ", ".join(sorted(found["missing_keys"])[:3])
        raise EvaluationError(f"{name} lacks weights of {type(network).__name__}: {missing}; choose another network")
    return network.eval()


def _pooled(output: Any) -> torch.Tensor:
    """One row for each sample: the pooled output where a network makes one."""
    if isinstance(output, torch.Tensor):  # of both towers, before transformers 5
        return output
    pooled = output.get("pooler_output")
    return pooled.flatten(1) if pooled is not None else output.last_hidden_state.mean(dim=1)  # type: ignore[no-any-return]


@torch.no_grad()
def _of_frames(drawn: SampleBatch, features: Any, name: str) -> Floats:
    """What a network makes of each frame, the mean over the frames of a sample."""
    if drawn.pictures is None:
        raise EvaluationError(f"{name} is a network for pictures, but there are none; choose other features")
    samples, frames = drawn.pictures.shape[:2]
    found = _numpy(features(drawn.pictures.reshape(-1, *drawn.pictures.shape[2:])))
    return np.asarray(found.reshape(samples, frames, -1).mean(axis=1))


def _numpy(tensor: torch.Tensor) -> Floats:
    return np.asarray(tensor.double().cpu().numpy())
