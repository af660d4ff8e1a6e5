"""Rows of data: pictures and sounds with captions or classes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io.wavfile
from diffusers import DiffusionPipeline
from PIL import Image

from ldpruner.errors import DataError, LdPrunerError
from ldpruner.finetuning.dataset import VIDEO, items, open_data
from tests.families import FAMILIES


@pytest.mark.parametrize("listing", ["metadata.jsonl", "metadata.csv"])
def test_pictures_of_a_folder_have_the_captions_of_its_metadata(
    listing: str, tiny_text: DiffusionPipeline, tmp_path: Path
) -> None:
    captions = {"0.png": "a cat", "1.png": "the moon"}
    for name in captions:
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    rows = [json.dumps({"file_name": name, "text": caption}) for name, caption in captions.items()]
    if listing.endswith("csv"):
        rows = ["file_name,text", *(f"{name},{caption}" for name, caption in captions.items())]
    (tmp_path / listing).write_text("\n".join(rows) + "\n")
    arguments = [item.arguments for item in items(open_data(tmp_path), tiny_text)]
    assert arguments == [{"prompt": "a cat"}, {"prompt": "the moon"}]
    (tmp_path / listing).write_text("{file_name" if listing.endswith("jsonl") else "name\nx\n")
    with pytest.raises(DataError, match=listing):
        open_data(tmp_path)[0]


@pytest.mark.filterwarnings("ignore")
def test_sounds_of_a_folder_become_mel_pictures(tmp_path: Path) -> None:
    pipeline = FAMILIES["audio-diffusion"].pipeline()
    mel: Any = pipeline.components["mel"]
    rate = mel.get_sample_rate()
    wave = np.sin(np.arange(rate) / 9)
    scipy.io.wavfile.write(tmp_path / "tone.wav", rate, (wave * 9000).astype(np.int16))
    decoded = {"audio": {"array": wave, "sampling_rate": rate}}
    for row in (*open_data(tmp_path), decoded):
        media = [item.media for item in items([row], pipeline)]
        assert {one.size for one in media if isinstance(one, Image.Image)} == {(mel.x_res, mel.y_res)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nowhere", "no pictures or sounds in"),
        ([{"image": Image.new("RGB", (8, 8))}], "needs data with a column text"),
        ([{"sound": 1, "text": "a cat"}], "trains on data with a column image"),
    ],
)
def test_data_that_does_not_fit_the_pipeline_is_refused(tiny_text: DiffusionPipeline, data: Any, message: str) -> None:
    with pytest.raises(LdPrunerError, match=message):
        list(items(open_data(data), tiny_text))


def test_a_class_has_to_be_a_number(tiny_transformer: DiffusionPipeline) -> None:
    picture = Image.new("RGB", (8, 8))
    (item,) = items([{"image": picture, "label": "3"}], tiny_transformer)
    assert item.arguments == {"class_labels": 3}
    for label in ("cat", 3.7, True, [1], "9" * 5000):
        with pytest.raises(LdPrunerError, match=r"label=.* is not the number of a class"):
            list(items([{"image": picture, "label": label}], tiny_transformer))


@pytest.mark.case(name="captions-that-are-no-text")
@pytest.mark.parametrize("caption", [3, 0.5, True, ["a cat", "a dog"], {"en": "a cat"}, "a\0cat"])
def test_a_caption_has_to_be_one_text(tiny_text: DiffusionPipeline, caption: Any) -> None:
    with pytest.raises(LdPrunerError, match="is no text; give one text for each") as caught:
        list(items([{"image": Image.new("RGB", (8, 8)), "text": caption}], tiny_text))
    assert "\n" not in str(caught.value)


def test_a_column_of_the_metadata_is_not_taken_for_a_picture(tiny: DiffusionPipeline, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"")
    (tmp_path / "metadata.csv").write_text("file_name,image\na.wav,b.png\n")
    with pytest.raises(LdPrunerError, match="trains on data with a column image"):
        list(items(open_data(tmp_path), tiny))


@pytest.mark.filterwarnings("ignore")
def test_an_image_of_the_call_belongs_to_its_row(tmp_path: Path) -> None:
    pipeline = FAMILIES["stable-diffusion-inpaint"].pipeline()
    call = {"image": Image.new("RGB", (8, 8)), "mask_image": Image.new("L", (8, 8))}
    for name, colour in {"own.png": "red", "source.png": "blue"}.items():
        Image.new("RGB", (20, 20), colour).save(tmp_path / name)
    row = {"file_name": "own.png", "text": "a cat", "original_image_file_name": "source.png"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    (item,) = items(open_data(tmp_path), pipeline, call)
    assert item.arguments.keys() == {"prompt", "image"}  # the mask stays as it is
    assert item.arguments["image"].size == (8, 8)
    assert item.arguments["image"].getpixel((0, 0)) == (0, 0, 255)
    plain = {"image": Image.new("RGB", (20, 20), "red"), "text": "a cat"}
    (item,) = items([plain], pipeline, call)
    assert item.arguments["image"].getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(LdPrunerError, match="needs data with a column conditioning_image or original_image"):
        list(items([plain], pipeline, call, from_itself=False))


def test_frames_of_a_video_may_be_arrays(tiny: DiffusionPipeline) -> None:
    frames = np.zeros((3, 4, 6, 3), dtype=np.uint8)
    for video in (frames, [Image.fromarray(frame) for frame in frames], frames.transpose(0, 3, 1, 2)):
        (item,) = items([{VIDEO: video}], tiny)
        assert isinstance(item.media, list)
        assert [frame.size for frame in item.media] == [(6, 4)] * 3
    with pytest.raises(LdPrunerError, match="is no picture; give levels of 8 bits"):
        list(items([{VIDEO: frames.astype(np.float32)}], tiny))


def test_prompt_embeddings_of_the_call_stand_for_captions(tiny_text: DiffusionPipeline) -> None:
    call = {"prompt": None, "prompt_embeds": np.zeros(1)}
    (item,) = items([{"image": Image.new("RGB", (4, 4))}], tiny_text, call)
    assert item.arguments == {}
