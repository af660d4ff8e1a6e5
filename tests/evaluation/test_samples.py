"""Sample batches from pipelines and from files."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io.wavfile
from diffusers import DiffusionPipeline
from PIL import Image

import ldpruner
from ldpruner.evaluation.media import find_media
from ldpruner.evaluation.samples import SampleBatch, read_samples, sample_batch
from ldpruner.pipelines.sampling import sample_latents

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own: deprecated classes, deprecated calls


def test_a_decoded_batch_has_the_latents_of_a_batch_that_is_not(tiny: DiffusionPipeline) -> None:
    probe = ldpruner.Probe(samples=3, steps=2)
    batch, latent_only = (sample_batch(tiny, probe, range(3), decoded=decoded) for decoded in (True, False))
    assert batch.pictures is not None
    assert batch.pictures.shape[:2] == (3, 1)
    assert batch.latents is not None
    np.testing.assert_array_equal(batch.latents, sample_latents(tiny, probe, range(3)).double().numpy())
    np.testing.assert_array_equal(batch.latents, latent_only.latents)
    assert latent_only.pictures is None


def test_pictures_are_scaled_and_cropped_to_the_size_of_samples(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, 20:40] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    like = SampleBatch(pictures=np.zeros((1, 1, 10, 10, 3), dtype=np.uint8))
    read = read_samples(find_media(tmp_path).files, like)
    assert read.pictures is not None
    assert read.pictures.shape == (1, 1, 10, 10, 3)
    assert (read.pictures[0, 0, :, 3:7] == 200).all()
    assert read.pictures.min() > 180  # what is cropped is black


def test_sounds_are_read_at_the_rate_and_at_most_the_length_of_samples(tmp_path: Path) -> None:
    scipy.io.wavfile.write(tmp_path / "a.wav", 16000, np.zeros(16000, dtype=np.int16))
    like = SampleBatch(sounds=(np.zeros((1, 6000)),), sampling_rate=8000)
    read = read_samples(find_media(tmp_path).files, like)
    assert read.sounds is not None
    assert read.sounds[0].shape == (1, 6000)
