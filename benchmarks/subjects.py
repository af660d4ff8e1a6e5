"""The models of the zoo as subjects of a benchmark: the pipeline, the judge, and the test images to compare with."""

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
from zoo.drawing import pixels_of, silent
from zoo.emoji import EMOJI
from zoo.eye import Eye
from zoo.judge import read_judge
from zoo.matcher import Matcher, match
from zoo.quality import frechet_distance

SUBJECTS = ("satellite", "emoji", "digits")
UNSEEN = 1000  # added to a seed: what measures a plan shares no noise with the latents that chose it
BATCH_SIZE = 64
MATCHED = 256  # pictures whose captions are looked for, and captions that there are
FITTING = 5  # captions among which a picture's own shall be


class Pictures(Sequence[Mapping[str, Any]]):
    """Training images as rows of a dataset: a picture, and its caption where it has one."""

    def __init__(self, name: str, pixels: torch.Tensor, captions: Sequence[str] | None = None) -> None:
        self.pixels, self.captions = pixels, captions
        self._fingerprint = f"{name} {len(pixels)}"

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, place: Any) -> Any:
        levels = self.pixels[place].permute(1, 2, 0).squeeze(-1).numpy()
        caption = {"text": self.captions[place]} if self.captions is not None else {}
        return {"image": Image.fromarray(levels), **caption}


@dataclass(frozen=True)
class Subject:
    """A model of the zoo with what it is judged by.

    Attributes:
        name: of the model.
        pipeline: the model; of sounds, it draws their mel pictures only.
        judge: whose features measure distances.
        train: its training images.
        test: bytes, [images, channels, height, width].
        known, unseen: captions of training and of test images, of a model that reads some.
        guidance: how strongly it follows them.
    """

    name: str
    pipeline: DiffusionPipeline
    judge: Eye
    train: Pictures
    test: torch.Tensor
    known: tuple[str, ...] | None = None
    unseen: tuple[str, ...] | None = None
    guidance: float | None = None

    def probe(self, samples: int, steps: int, seed: int) -> ldpruner.Probe:
        """The probe that scores operators; its captions are those of training images."""
        return ldpruner.Probe(samples=samples, steps=steps, seed=seed, prompts=self.known, guidance=self.guidance)

    def distance(self, pipeline: DiffusionPipeline, pictures: int, steps: int, seed: int) -> float:
        """The judge's Frechet distance of a pipeline's pictures to the test images."""
        return frechet_distance(self.judge, self.test, self.drawn(pipeline, pictures, steps, seed))

    @cached_property
    def weights(self) -> str:
        """Tells the model from one of its name that is trained anew, of which nothing is measured yet."""
        return "-".join(weights_digest(part) for part in networks(self.pipeline).values())

    @property
    def autoencoder(self) -> Any:
        return getattr(self.pipeline, "vae", None) or self.pipeline.vqvae

    def recalled(self, pixels: torch.Tensor) -> Floats | None:
        """[pictures] whether the judge finds a picture's caption among the five that fit it best: 1 or 0.

        Of the first pictures, as more captions are harder. None of a model that reads no captions.
        """
        if self.unseen is None or not isinstance(self.judge, Matcher):
            return None
        scores = match(self.judge, pixels[:MATCHED], self.unseen[:MATCHED])
        better = (scores > scores.diagonal()[:, None]).sum(1)
        return np.asarray((better < FITTING).double().numpy())

    def drawn(self, pipeline: DiffusionPipeline, pictures: int, steps: int, seed: int) -> torch.Tensor:
        """Pictures of a pipeline, bytes; one that reads captions is given those of the test images."""
        probe = ldpruner.Probe(
            samples=pictures,
            steps=steps,
            seed=UNSEEN + seed,
            prompts=self.unseen,
            guidance=self.guidance,
            call={"output_type": "np"},
        )
        batches = torch.arange(pictures).split(BATCH_SIZE)
        drawn = [run_pipeline(pipeline, probe.arguments(pipeline, batch.tolist())).images for batch in batches]
        return torch.cat([pixels_of(images) for images in drawn])


def open_subject(name: str, data: Path) -> Subject:
    """A model of the zoo; `data` is the folder of its train.zip and test.zip."""
    pipeline = ldpruner.load(f"zoo:{name}")
    judge = read_judge(ROOT / "zoo" / name)
    archives = data / "train.zip", data / "test.zip"
    if isinstance(pipeline, AudioDiffusionPipeline):
        train, test = (read_pictures(archive, DIGITS.seed).pixels for archive in archives)
        return Subject(name, silent(pipeline), judge, Pictures(name, train), test)
    if name != "emoji":
        train, test = (read_images(archive).pixels for archive in archives)
        return Subject(name, pipeline, judge, Pictures(name, train), test)
    known, unseen = (read_captioned(archive) for archive in archives)
    captions = (_mixed(known.captions), _mixed(unseen.captions))
    rows = Pictures(name, known.pixels, known.captions)
    return Subject(name, pipeline, judge, rows, unseen.pixels, *captions, guidance=EMOJI.guidance)


def _mixed(captions: Sequence[str]) -> tuple[str, ...]:
    """The captions in a random order, the same each time: files come sorted by style."""
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(0))
    return tuple(captions[place] for place in order.tolist())
