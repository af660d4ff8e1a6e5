"""The models of the zoo as subjects of a benchmark: the pipeline, the judge, and the test images to compare with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AudioDiffusionPipeline, DiffusionPipeline

import ldpruner
from benchmarks.records import ROOT
from ldpruner.pipelines import run_pipeline
from zoo.captions import read_captioned
from zoo.data import read_images
from zoo.digits import DIGITS, read_pictures
from zoo.drawing import pixels_of, silent
from zoo.emoji import EMOJI
from zoo.eye import Eye
from zoo.judge import read_judge
from zoo.quality import frechet_distance

SUBJECTS = ("satellite", "emoji", "digits")
UNSEEN = 1000  # added to a seed: what measures a plan shares no noise with the latents that chose it
BATCH = 64


@dataclass(frozen=True)
class Subject:
    """A model of the zoo with what it is judged by.

    Attributes:
        name: of the model.
        pipeline: the model; of sounds, it draws their mel pictures only.
        judge: whose features measure distances.
        test: bytes, [images, channels, height, width].
        known, unseen: captions of training and of test images, of a model that reads some.
        guidance: how strongly it follows them.
    """

    name: str
    pipeline: DiffusionPipeline
    judge: Eye
    test: torch.Tensor
    known: tuple[str, ...] | None = None
    unseen: tuple[str, ...] | None = None
    guidance: float | None = None

    def probe(self, samples: int, steps: int, seed: int) -> ldpruner.Probe:
        """The probe that scores operators; its captions are those of training images."""
        return ldpruner.Probe(samples=samples, steps=steps, seed=seed, prompts=self.known, guidance=self.guidance)

    def distance(self, pipeline: DiffusionPipeline, pictures: int, steps: int, seed: int) -> float:
        """The judge's Frechet distance of a pipeline's pictures to the test images.

        A model that reads captions is given those of the test images.
        """
        settings = {"samples": pictures, "steps": steps, "seed": UNSEEN + seed, "guidance": self.guidance}
        probe = ldpruner.Probe(prompts=self.unseen, call={"output_type": "np"}, **settings)
        batches = torch.arange(pictures).split(BATCH)
        drawn = [run_pipeline(pipeline, probe.arguments(pipeline, batch.tolist())).images for batch in batches]
        return frechet_distance(self.judge, self.test, torch.cat([pixels_of(images) for images in drawn]))


def open_subject(name: str, data: Path) -> Subject:
    """A model of the zoo; `data` is the folder of its train.zip and test.zip."""
    pipeline = ldpruner.load(f"zoo:{name}")
    judge = read_judge(ROOT / "zoo" / name)
    if isinstance(pipeline, AudioDiffusionPipeline):
        return Subject(name, silent(pipeline), judge, read_pictures(data / "test.zip", DIGITS.seed).pixels)
    if name != "emoji":
        return Subject(name, pipeline, judge, read_images(data / "test.zip").pixels)
    known, test = (read_captioned(data / part) for part in ("train.zip", "test.zip"))
    captions = (_mixed(known.captions), _mixed(test.captions))
    return Subject(name, pipeline, judge, test.pixels, *captions, guidance=EMOJI.guidance)


def _mixed(captions: Sequence[str]) -> tuple[str, ...]:
    """The captions in a random order, the same each time: files come sorted by style."""
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(0))
    return tuple(captions[place] for place in order.tolist())
