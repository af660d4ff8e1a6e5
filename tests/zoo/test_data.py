"""Images, captions and sounds of the zoo."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.zoo.conftest import CAPTIONS
from zoo.captions import read_captioned
from zoo.data import to_pixels, to_signal, turned
from zoo.sounds import Sounds, build_mel, placed, sounds_of
from zoo.text import build_tokenizer


def test_bytes_become_signals_and_the_same_bytes_again() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_pixels(to_signal(pixels)), pixels)


def test_turning_reaches_all_eight_symmetries_of_the_square() -> None:
    corner = torch.arange(4.0).reshape(1, 1, 2, 2)
    seen = turned(corner.expand(400, 1, 2, 2), torch.Generator().manual_seed(0))
    assert len({tuple(image.flatten().tolist()) for image in seen}) == 8


def test_a_tokenizer_is_the_same_each_time_it_is_made() -> None:
    first, second = (build_tokenizer(CAPTIONS, vocabulary_size=560, max_tokens=12) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert first.tokenize("cat face, noto style") == ["cat</w>", "face</w>", ",</w>", "noto</w>", "style</w>"]


def test_captioned_pictures_are_those_of_the_styles_with_their_keywords(tmp_path: Path) -> None:
    rows = [
        {"caption": "Koala", "style": "noto", "keywords": ["animal", "koala", "bear"]},
        {"caption": "rocket", "style": "fluent-3d", "keywords": []},
        {"caption": "red heart", "style": "fluent-flat", "keywords": list("abcdef")},
    ]
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "png")
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        lines = [json.dumps({"file_name": f"{i}.png", "group": "all"} | row) for i, row in enumerate(rows)]
        archive.writestr("metadata.jsonl", "\n".join(lines))
        for i in range(len(rows)):
            archive.writestr(f"{i}.png", picture.getvalue())
    pictures = read_captioned(tmp_path / "train.zip", ("noto", "fluent flat"))
    assert pictures.pixels.shape == (2, 3, 4, 4)
    assert pictures.captions == ("Koala, noto style", "red heart, fluent flat style")
    assert pictures.descriptions == (
        "Koala, noto style, all, animal, bear",
        "red heart, fluent flat style, all, a, b, c, d",
    )
    assert set(pictures.subset(2, 0).descriptions) == set(pictures.descriptions)


def test_a_recording_is_placed_whole_in_silence_and_a_long_one_is_cut() -> None:
    mel = build_mel()
    tone = np.sin(np.arange(2000) * 0.5).astype(np.float32)
    sounds = Sounds((tone, np.tile(tone, 6)), torch.tensor([3, 4]), ("3", "4"))
    short, long = placed(sounds, mel, torch.Generator().manual_seed(0)).pixels[:, 0]

    assert short.shape == long.shape == (64, 64)
    assert 14 <= (short.amax(0) > 128).sum() <= 22
    assert (long.amax(0) > 128).all()


def test_a_mel_picture_survives_being_turned_to_sound_and_back() -> None:
    mel = build_mel()
    tone = np.sin(np.arange(4000) * 0.5).astype(np.float32)
    picture = placed(Sounds((tone,), torch.tensor([0]), ("0",)), mel, torch.Generator().manual_seed(0)).pixels
    again = placed(Sounds(tuple(sounds_of(picture, mel)), torch.tensor([0]), ("0",)), mel, torch.Generator())
    assert (again.pixels.amax(3).argmax(2) - picture.amax(3).argmax(2)).abs().item() <= 1
