"""The models of the zoo in a benchmark: the pipeline, its feature network, its training and test images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AudioDiffusionPipeline, DiffusionPipeline
from PIL import Image

import ldpruner
from benchmarks.records import ROOT
from ldpruner.pipelines.fingerprints import weights_digest
from ldpruner.pipelines.running import networks, run_pipeline
from ldpruner.scoring.importance import Floats
from zoo.captions import read_captioned
from zoo.data import read_images
from zoo.digits import DIGITS, read_pictures
from zoo.emoji import EMOJI
from zoo.feature_network import read_feature_network
from zoo.features import FeatureNetwork
from zoo.matcher import Matcher, match
from zoo.quality import frechet_distance
from zoo.sampling import pixels_of, without_sound

MODELS = ("satellite", "emoji", "digits")
EARLIER = "emoji-small"  # the zoo:emoji of commit d491dc1: 6.7 M parameters, 8x8 latents
MEASURED = ("satellite", EARLIER, "digits")  # by the committed records
OTHER_SEED = 1000  # added to a seed, so that the latents that chose a plan share no noise with those that measure it
BATCH_SIZE = 64
CAPTIONS = 256  # of a retrieval: more are harder


class Pictures(Sequence[Mapping[str, Any]]):
    """Training images as rows of a dataset: a picture, and its caption where it has one."""

    def __init__(self, name: str, pixels: torch.Tensor, captions: Sequence[str] | None = None) -> None:
        self.pixels, self.captions = pixels, captions
        self._fingerprint = f"{name} {len(pixels)}"

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: Any) -> Any:
        levels = self.pixels[index].permute(1, 2, 0).squeeze(-1).numpy()
        caption = {"text": self.captions[index]} if self.captions is not None else {}
        return {"image": Image.fromarray(levels), **caption}


@dataclass(frozen=True)
class Model:
    """A model of the zoo with its data.

    Attributes:
        name: the name in the zoo.
        pipeline: the model; a pipeline of sounds makes their mel spectrograms only.
        feature_network: trained on the training split; its features measure distances.
        train: the training images.
        test: the test images, bytes [images, channels, height, width].
        train_captions: of a model that reads captions.
        test_captions: the same of the test images, with keywords that say what an unknown name is.
        guidance: the scale of classifier-free guidance.
    """

    name: str
    pipeline: DiffusionPipeline
    feature_network: FeatureNetwork
    train: Pictures
    test: torch.Tensor
    train_captions: tuple[str, ...] | None = None
    test_captions: tuple[str, ...] | None = None
    guidance: float | None = None

    def probe(self, samples: int, steps: int, seed: int) -> ldpruner.Probe:
        """The probe that scores operators, with the captions of training images."""
        return ldpruner.Probe(
            samples=samples, steps=steps, seed=seed, prompts=self.train_captions, guidance=self.guidance
        )

    def distance(self, pipeline: DiffusionPipeline, pictures: int, steps: int, seed: int) -> float:
        """The Frechet distance of a pipeline's pictures to the test images."""
        return frechet_distance(self.feature_network, self.test, self.sample(pipeline, pictures, steps, seed))

    @cached_property
    def weights(self) -> str:
        """A digest of the weights: of a model trained anew nothing is measured yet."""
        return "-".join(weights_digest(part) for part in networks(self.pipeline).values())

    @property
    def autoencoder(self) -> Any:
        return getattr(self.pipeline, "vae", None) or self.pipeline.vqvae

    def ranks(self, pixels: torch.Tensor) -> Floats:
        """How many captions match each of the first 256 pictures of `sample_captions` better than its own: [pictures].

        The share of zeros is R@1.
        """
        assert self.train_captions is not None
        assert isinstance(self.feature_network, Matcher)
        scores = match(self.feature_network, pixels[:CAPTIONS], self.train_captions[:CAPTIONS])
        return np.asarray((scores > scores.diagonal()[:, None]).sum(1).double().numpy())

    def sample(self, pipeline: DiffusionPipeline, pictures: int, steps: int, seed: int) -> torch.Tensor:
        """Pictures of a pipeline as bytes, with the captions of the test images."""
        return self._sampled(pipeline, pictures, steps, seed, self.test_captions)

    def sample_captions(self, pipeline: DiffusionPipeline, steps: int, seed: int) -> torch.Tensor:
        """A picture of each of 256 captions of training images, as bytes."""
        return self._sampled(pipeline, CAPTIONS, steps, seed, self.train_captions)

    def _sampled(
        self, pipeline: DiffusionPipeline, pictures: int, steps: int, seed: int, prompts: tuple[str, ...] | None
    ) -> torch.Tensor:
        probe = ldpruner.Probe(
            samples=pictures,
            steps=steps,
            seed=OTHER_SEED + seed,
            prompts=prompts,
            guidance=self.guidance,
            call={"output_type": "np"},
        )
        batches = torch.arange(pictures).split(BATCH_SIZE)
        images = [run_pipeline(pipeline, probe.arguments(pipeline, batch.tolist())).images for batch in batches]
        return torch.cat([pixels_of(batch) for batch in images])


def open_model(name: str, data: Path) -> Model:
    """Opens a model of the zoo; `data` is the folder of its train.zip and test.zip."""
    pipeline = ldpruner.load(f"zoo:{name}")
    network = read_feature_network(ROOT / "zoo" / name)
    archives = data / "train.zip", data / "test.zip"
    if isinstance(pipeline, AudioDiffusionPipeline):
        train, test = (read_pictures(archive, DIGITS.seed).pixels for archive in archives)
        return Model(name, without_sound(pipeline), network, Pictures(name, train), test)
    if name != "emoji":
        train, test = (read_images(archive).pixels for archive in archives)
        return Model(name, pipeline, network, Pictures(name, train), test)
    trained, tested = (read_captioned(archive, EMOJI.styles) for archive in archives)
    captions = (_shuffled(trained.captions), _shuffled(tested.descriptions))
    rows = Pictures(name, trained.pixels, trained.captions)
    return Model(name, pipeline, network, rows, tested.pixels, *captions, guidance=EMOJI.guidance)


def _shuffled(captions: Sequence[str]) -> tuple[str, ...]:
    """The captions in a fixed random order: files are sorted by style."""
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(0))
    return tuple(captions[index] for index in order.tolist())
