"""Samples of a run folder as data."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldpruner.errors import RunStoreError
from ldpruner.evaluation.gallery import _write_frames, _write_sound
from ldpruner.report.samples import MAX_BYTES, MAX_SIDE, Samples, read_samples

ROWS = ("original", "pruned", "recovered")


def listing(folder: Path, count: int) -> None:
    samples = [{"seed": 7}, *({"seed": 8, "prompt": "a cat"} for _ in range(count - 1))]
    (folder / "samples.json").write_text(json.dumps({"rows": ROWS, "samples": samples}))


def pictures(folder: Path, count: int, side: int, frames: int = 1) -> None:
    """Three rows of pictures, each of one level."""
    for index in range(count):
        for place, row in enumerate(ROWS):
            level = 40 * (3 * index + place) % 256
            _write_frames(np.full((frames, side, side, 3), level, dtype=np.uint8), folder / f"{index}-{row}")
    listing(folder, count)


def sounds(folder: Path, seconds: float, rate: int = 8000) -> None:
    times = np.arange(int(seconds * rate)) / rate
    for row, hertz in zip(ROWS, (500, 1000, 2000), strict=True):
        _write_sound(np.sin(2 * np.pi * hertz * times)[None] / 2, rate, folder / f"0-{row}.wav")
    listing(folder, 1)


def decoded(uri: str, kind: str) -> bytes:
    start, _, content = uri.partition(";base64,")
    assert start == f"data:{kind}"
    return base64.b64decode(content)


def picture(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(decoded(uri, "image/webp")))


@pytest.mark.parametrize("side", [32, 700])
def test_each_seed_has_a_picture_of_each_pipeline(tmp_path: Path, side: int) -> None:
    pictures(tmp_path, 2, side)
    samples = read_samples(tmp_path)
    assert samples.stages == ROWS
    assert [sample.caption for sample in samples.shown] == ["seed 7", "a cat"]
    for index, sample in enumerate(samples.shown):
        for place, uri in enumerate(sample.media.values()):
            tile = picture(uri)
            assert max(tile.size) == min(side, MAX_SIDE)
            assert np.allclose(np.asarray(tile.convert("L"), dtype=float), 40 * (3 * index + place) % 256, atol=3)


def test_videos_move(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), dtype=np.uint8)
    for row in ROWS:
        _write_frames(frames, tmp_path / f"0-{row}")
    listing(tmp_path, 1)
    (sample,) = read_samples(tmp_path).shown
    assert [getattr(picture(uri), "n_frames", 1) for uri in sample.media.values()] == [3, 3, 3]


def test_sounds_have_players_and_spectrograms_with_their_pitch(tmp_path: Path) -> None:
    sounds(tmp_path, 1)
    (sample,) = read_samples(tmp_path).shown
    assert sample.is_sound
    assert decoded(sample.media["pruned"], "audio/wav") == (tmp_path / "0-pruned.wav").read_bytes()
    heights = []
    for uri in sample.spectrograms.values():
        level = np.asarray(picture(uri).convert("L"), dtype=float).mean(1)
        heights.append(1 - level.argmax() / len(level))  # of the loudest pitch, 1 is the highest
    assert np.allclose(heights, [1 / 8, 1 / 4, 1 / 2], atol=0.03)


def test_a_long_sound_is_compressed(tmp_path: Path) -> None:
    sounds(tmp_path, 20, rate=16000)
    (sample,) = read_samples(tmp_path).shown
    assert len(decoded(sample.media["original"], "audio/mpeg")) < (tmp_path / "0-original.wav").stat().st_size / 2


def test_a_page_holds_as_many_samples_as_fit(tmp_path: Path) -> None:
    pictures(tmp_path, 4, 32)
    whole = read_samples(tmp_path)
    size = sum(len(uri) for sample in whole.shown[:2] for uri in sample.media.values())
    some = read_samples(tmp_path, limit=size)
    assert (len(whole.shown), len(some.shown), some.count) == (4, 2, 4)
    assert len(read_samples(tmp_path, limit=0).shown) == 1


def test_thirty_two_samples_fit_a_page(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for index in range(8):
        for row in ROWS:
            coarse = Image.fromarray(random.integers(0, 255, (24, 24, 3), dtype=np.uint8))
            frame = np.asarray(coarse.resize((MAX_SIDE, MAX_SIDE), Image.Resampling.BILINEAR))
            _write_frames(frame[None], tmp_path / f"{index}-{row}")
    listing(tmp_path, 8)
    samples = read_samples(tmp_path)
    assert 4 * sum(len(uri) for sample in samples.shown for uri in sample.media.values()) <= MAX_BYTES


def test_no_samples_are_none_and_damaged_ones_one_line(tmp_path: Path) -> None:
    assert read_samples(tmp_path) == Samples()
    pictures(tmp_path, 1, 32)
    (tmp_path / "0-pruned.png").write_bytes(b"damaged")
    with pytest.raises(RunStoreError, match=r"0-pruned\.png: .*run again"):
        read_samples(tmp_path)
    sounds(tmp_path, 0.1)
    for row in ROWS:
        (tmp_path / f"0-{row}.png").unlink()
    (tmp_path / "0-pruned.wav").write_bytes(b"damaged")
    with pytest.raises(RunStoreError, match="run again"):
        read_samples(tmp_path)
