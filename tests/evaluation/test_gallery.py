"""Samples in a folder: files of their own, and one sheet."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io.wavfile
from diffusers import DiffusionPipeline
from PIL import Image

import ldpruner
from ldpruner.errors import RunStoreError, StorageError
from ldpruner.evaluation.gallery import read_gallery, write_sample, write_samples
from ldpruner.evaluation.samples import SampleBatch
from tests.families import FAMILIES

SIDE = 128 + 4  # pixels of a sample on a sheet, and of the gap behind it

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own: deprecated classes, deprecated calls


def written(name: str, folder: Path) -> list[Path]:
    family = FAMILIES[name]
    pipeline = family.pipeline()
    probe = ldpruner.Probe(samples=3, steps=2, prompts=("a red cat", "the sea"), call=dict(family.call))
    return write_samples({"original": pipeline, "pruned": pipeline}, probe, 2, folder)


def test_pictures_are_on_one_sheet_a_row_for_each_pipeline(tiny: DiffusionPipeline, tmp_path: Path) -> None:
    path, *files = write_samples({"original": tiny, "pruned": tiny}, ldpruner.Probe(samples=3, steps=2), 2, tmp_path)
    assert path == tmp_path / "sheet.png"
    assert [file.name for file in files] == ["0-original.png", "0-pruned.png", "1-original.png", "1-pruned.png"]
    with Image.open(path) as opened:
        sheet = np.asarray(opened)[-2 * SIDE :, -2 * SIDE :]  # two pipelines, two samples
    np.testing.assert_array_equal(sheet[:SIDE], sheet[SIDE:])  # the same pipeline, the same seeds
    assert sheet.std() > 0


def test_the_listing_has_the_seed_and_prompt_of_each_sample(tmp_path: Path) -> None:
    written("stable-diffusion", tmp_path)
    listing = json.loads((tmp_path / "samples.json").read_text())
    probe = ldpruner.Probe(samples=3, prompts=("a red cat", "the sea"))
    assert listing["rows"] == ["original", "pruned"]
    assert listing["samples"] == probe.sample_settings()[:2]
    assert listing["samples"][1] == {"seed": probe.sample_seed(1), "prompt": "the sea"}


def test_sounds_are_wav_files(tmp_path: Path) -> None:
    paths = written("stable-audio", tmp_path)
    assert [path.name for path in paths] == ["0-original.wav", "0-pruned.wav", "1-original.wav", "1-pruned.wav"]
    rate, wave = scipy.io.wavfile.read(paths[0])
    assert rate == FAMILIES["stable-audio"].pipeline().vae.config.sampling_rate
    assert wave.dtype == "int16"
    assert len(wave)


def test_the_sheet_of_videos_is_animated(tmp_path: Path) -> None:
    path, *_ = written("wan", tmp_path)
    with Image.open(path) as sheet:
        assert path.suffix == ".webp"
        assert getattr(sheet, "n_frames", 1) > 1


def test_a_folder_that_cannot_be_written_raises(tiny: DiffusionPipeline, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        write_samples({"original": tiny}, ldpruner.Probe(samples=1, steps=1), 1, tmp_path / "file")


def test_another_row_joins_the_samples_of_the_same_seeds(tiny: DiffusionPipeline, tmp_path: Path) -> None:
    probe = ldpruner.Probe(samples=2, steps=2)
    write_samples({"original": tiny, "pruned": tiny}, probe, 2, tmp_path)
    written = (tmp_path / "0-pruned.png").stat().st_mtime_ns
    write_samples({"recovered": tiny}, probe, 2, tmp_path, keep=True)
    gallery = read_gallery(tmp_path)
    assert gallery is not None
    assert gallery.rows == ("original", "pruned", "recovered")
    assert (tmp_path / "0-pruned.png").stat().st_mtime_ns == written
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert 3 * SIDE < sheet.height < 4 * SIDE


@pytest.mark.parametrize("changes", [{"keep": False}, {"seed": 7}])
def test_rows_of_other_samples_do_not_stay(tiny: DiffusionPipeline, tmp_path: Path, changes: dict[str, Any]) -> None:
    probe = ldpruner.Probe(samples=1, steps=2)
    write_samples({"original": tiny}, probe, 1, tmp_path)
    again = probe.replace(seed=changes.get("seed", probe.seed))
    write_samples({"recovered": tiny}, again, 1, tmp_path, keep=changes.get("keep", True))
    gallery = read_gallery(tmp_path)
    assert gallery is not None
    assert gallery.rows == ("recovered",)


@pytest.mark.parametrize("content", ["{", "[]", '{"rows": 3}', '{"rows": ["../../x"], "samples": [{"seed": 1}]}'])
def test_a_listing_that_is_damaged_or_names_other_files_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "samples.json").write_text(content)
    with pytest.raises(RunStoreError, match="run again"):
        read_gallery(tmp_path)


def test_the_first_sample_of_a_batch_is_a_file_of_its_kind(tmp_path: Path) -> None:
    frames = np.arange(2 * 3 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 4, 3)
    sounds = (np.full((1, 8), 0.5), np.zeros((1, 8)))
    picture = write_sample(SampleBatch(pictures=frames[:, :1]), tmp_path / "a.b", min_side=8)
    assert picture == tmp_path / "a.png"
    np.testing.assert_array_equal(np.asarray(Image.open(picture))[::2, ::2], frames[0, 0])
    video = write_sample(SampleBatch(pictures=frames), tmp_path / "a")
    assert video == tmp_path / "a.webp"
    with Image.open(video) as animation:
        assert getattr(animation, "n_frames", 1) == 3
    sound = write_sample(SampleBatch(pictures=frames, sounds=sounds, sampling_rate=8000), tmp_path / "a")
    assert sound == tmp_path / "a.wav"
    rate, wave = scipy.io.wavfile.read(sound)
    assert (rate, set(wave)) == (8000, {16383})
    assert write_sample(SampleBatch(sounds=sounds), tmp_path / "a") is None
