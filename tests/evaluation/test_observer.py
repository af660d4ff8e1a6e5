"""What is kept of samples, and what cannot be compared."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io.wavfile
import torch
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.errors import EvaluationError, NonFiniteLatents
from ldpruner.evaluation.evaluate import evaluate
from ldpruner.evaluation.features import LatentFeatures
from ldpruner.evaluation.metrics import cosine_distance
from ldpruner.evaluation.observer import Observer
from ldpruner.evaluation.samples import SampleBatch
from ldpruner.evaluation.scorers import Scorer
from ldpruner.scoring.importance import Floats

PROBE = ldpruner.Probe(samples=8, steps=2)
LATENT_ONLY = ("frechet_distance", "latent_shift")
RANDOM = np.random.default_rng(0)


class Colours:
    """The mean colour of each picture."""

    name = "colours"

    def __call__(self, batch: SampleBatch) -> Floats:
        assert batch.pictures is not None
        return np.asarray(batch.pictures.mean((1, 2, 3)))


def batch() -> SampleBatch:
    pictures = RANDOM.integers(0, 256, (3, 1, 16, 16, 3), dtype=np.uint8)
    return SampleBatch(latents=RANDOM.normal(size=(3, 4, 2, 2)), pictures=pictures)


def test_nothing_of_the_size_of_a_picture_is_kept() -> None:
    scorer = Scorer("m:f", lambda samples, prompts: [0] * len(samples))
    observer = Observer(Colours(), frozenset({"psnr", "ssim", "dino_distance"}), dino=Colours(), scorers=(scorer,))
    first, second = batch(), batch()
    original, ours = observer([first, second])
    assert observer.decodes
    assert original.keys() == {"features", "dino", "dino_distance", "latent_distance", "psnr", "ssim", "m:f"}
    assert max(values.size for values in ours.values()) <= 9
    np.testing.assert_allclose(ours["dino_distance"], cosine_distance(Colours()(second), Colours()(first)))
    np.testing.assert_allclose(original["dino_distance"], 0, atol=1e-12)


def test_only_what_needs_it_is_decoded() -> None:
    metrics = frozenset(LATENT_ONLY)
    scorer = Scorer("m:f", lambda samples, prompts: [0] * len(samples))
    assert not Observer(LatentFeatures(), metrics).decodes
    assert Observer(LatentFeatures(), metrics, scorers=(scorer,)).decodes
    assert Observer(LatentFeatures(), metrics, dino=Colours()).decodes
    assert Observer(LatentFeatures(), frozenset({"ssim"})).decodes


def test_files_of_another_kind_than_the_samples_are_refused(tiny: DiffusionPipeline, tmp_path: Path) -> None:
    for name in "abcde":
        scipy.io.wavfile.write(tmp_path / f"{name}.wav", 8000, np.zeros(100, dtype=np.int16))
    with pytest.raises(EvaluationError, match="holds sounds, but the pipeline samples none"):
        evaluate(tiny, tiny, PROBE, data=tmp_path, features=Colours(), metrics=("frechet_distance",))


def test_a_pipeline_of_another_latent_shape_is_refused(tiny: DiffusionPipeline) -> None:
    with pytest.raises(EvaluationError, match="give a pipeline and what was pruned of it"):
        evaluate(tiny, ldpruner.load("zoo:satellite"), PROBE, metrics=LATENT_ONLY)


def test_latents_that_are_not_finite_are_refused(fresh: DiffusionPipeline, tiny: DiffusionPipeline) -> None:
    torch.nn.init.constant_(fresh.unet.conv_out.bias, float("nan"))
    with pytest.raises(NonFiniteLatents, match="not finite"):
        evaluate(fresh, tiny, PROBE, metrics=LATENT_ONLY)
