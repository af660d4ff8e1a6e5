"""Sample batches from pipelines and from files, and decoded samples in the run folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.io.wavfile
from diffusers import DiffusionPipeline
from PIL import Image

import ldpruner
from ldpruner.errors import StorageError
from ldpruner.evaluation.media import find_media
from ldpruner.evaluation.samples import SampleBatch, read_samples, sample_batch, write_samples
from ldpruner.pipelines.sampling import sample_latents
from tests.families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own: deprecated classes, deprecated calls


def written(name: str, folder: Path) -> list[Path]:
    family = FAMILIES[name]
    pipeline = family.pipeline()
    probe = ldpruner.Probe(samples=3, steps=2, prompts=("a red cat", "the sea"), call=dict(family.call))
    return write_samples({"before": pipeline, "after": pipeline}, probe, 2, folder)


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


def test_pictures_are_on_one_sheet_a_row_for_each_pipeline(tiny: DiffusionPipeline, tmp_path: Path) -> None:
    (path,) = write_samples({"before": tiny, "after": tiny}, ldpruner.Probe(samples=3, steps=2), 2, tmp_path)
    assert path == tmp_path / "before-after.png"
    with Image.open(path) as sheet:
        width, height = sheet.size
        assert width == height  # two samples, two pipelines
        half = (height - 4) // 2
        above, below = sheet.crop((0, 0, width, half)), sheet.crop((0, height - half, width, height))
    assert above.tobytes() == below.tobytes()  # the same pipeline, the same seeds


def test_the_listing_has_the_seed_and_prompt_of_each_sample(tmp_path: Path) -> None:
    written("stable-diffusion", tmp_path)
    listing = json.loads((tmp_path / "samples.json").read_text())
    probe = ldpruner.Probe(samples=3, prompts=("a red cat", "the sea"))
    assert listing["rows"] == ["before", "after"]
    assert listing["samples"] == probe.sample_settings()[:2]
    assert listing["samples"][1] == {"seed": probe.sample_seed(1), "prompt": "the sea"}


def test_sounds_are_wav_files(tmp_path: Path) -> None:
    paths = written("stable-audio", tmp_path)
    assert [path.name for path in paths] == ["0-before.wav", "1-before.wav", "0-after.wav", "1-after.wav"]
    rate, wave = scipy.io.wavfile.read(paths[0])
    assert rate == FAMILIES["stable-audio"].pipeline().vae.config.sampling_rate
    assert wave.dtype == "int16"
    assert len(wave)


def test_the_sheet_of_videos_is_animated(tmp_path: Path) -> None:
    (path,) = written("wan", tmp_path)
    with Image.open(path) as sheet:
        assert path.suffix == ".gif"
        assert getattr(sheet, "n_frames", 1) > 1


def test_a_folder_that_cannot_be_written_raises(tiny: DiffusionPipeline, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        write_samples({"before": tiny}, ldpruner.Probe(samples=1, steps=1), 1, tmp_path / "file")
