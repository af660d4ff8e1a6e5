"""Decoded samples in the run folder: pictures, sounds, moving pictures, and what made them."""

import json
from pathlib import Path

import pytest
import scipy.io.wavfile
from diffusers import DiffusionPipeline
from PIL import Image

import ldpruner
from ldpruner.errors import StorageError
from ldpruner.evaluation.samples import write_samples
from tests.families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own: deprecated classes, deprecated calls


def written(name: str, folder: Path) -> list[Path]:
    family = FAMILIES[name]
    pipeline = family.pipeline()
    probe = ldpruner.Probe(samples=3, steps=2, prompts=("a red cat", "the sea"), call=dict(family.call))
    return write_samples({"before": pipeline, "after": pipeline}, probe, 2, folder)


def test_pictures_are_on_one_sheet_a_row_for_each_pipeline(tiny: DiffusionPipeline, tmp_path: Path) -> None:
    (path,) = write_samples({"before": tiny, "after": tiny}, ldpruner.Probe(samples=3, steps=2), 2, tmp_path)
    assert path == tmp_path / "before-after.png"
    with Image.open(path) as sheet:
        width, height = sheet.size
        assert width == height  # two samples, two pipelines
        half = (height - 4) // 2
        above, below = sheet.crop((0, 0, width, half)), sheet.crop((0, height - half, width, height))
    assert above.tobytes() == below.tobytes()  # the same pipeline, the same seeds


def test_it_is_written_down_which_seed_and_prompt_made_which(tmp_path: Path) -> None:
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


def test_a_video_makes_the_sheet_move(tmp_path: Path) -> None:
    (path,) = written("wan", tmp_path)
    with Image.open(path) as sheet:
        assert path.suffix == ".gif"
        assert getattr(sheet, "n_frames", 1) > 1


def test_a_folder_that_cannot_be_written_is_told(tiny: DiffusionPipeline, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        write_samples({"before": tiny}, ldpruner.Probe(samples=1, steps=1), 1, tmp_path / "file")
