"""Samples of a run folder as data."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldpruner.errors import RunStoreError
from ldpruner.evaluation.samples import _write_sheet, _write_sound
from ldpruner.report.samples import MAX_SIDE, Samples, read_samples


def sheet(folder: Path, side: int, frames: int = 1) -> None:
    """Two rows of three pictures, each of one level."""
    levels = np.arange(6, dtype=np.uint8).reshape(2, 3, 1, 1, 1, 1) * 40
    _write_sheet(np.broadcast_to(levels, (2, 3, frames, side, side, 3)).copy(), folder / "before-after")
    samples = [{"seed": 7}, {"seed": 8, "prompt": "a cat"}, {"seed": 9}]
    (folder / "samples.json").write_text(json.dumps({"rows": ["before", "after"], "samples": samples}))


def picture(uri: str) -> Image.Image:
    kind, _, content = uri.partition(";base64,")
    assert kind == "data:image/webp"
    return Image.open(io.BytesIO(base64.b64decode(content)))


@pytest.mark.parametrize("side", [32, 700])
def test_a_sheet_is_cut_into_its_pictures(tmp_path: Path, side: int) -> None:
    sheet(tmp_path, side)
    pictures = read_samples(tmp_path).pictures
    assert [sample.caption for sample in pictures] == ["seed 7", "a cat", "seed 9"]
    for column, sample in enumerate(pictures):
        assert list(sample.media) == ["original", "pruned"]
        for row, uri in enumerate(sample.media.values()):
            tile = picture(uri)
            assert max(tile.size) <= MAX_SIDE
            assert np.allclose(np.asarray(tile.convert("L"), dtype=float), (3 * row + column) * 40, atol=3)


def test_videos_are_one_animation_and_sounds_are_players(tmp_path: Path) -> None:
    sheet(tmp_path, 32, frames=2)
    for index in range(2):
        for row in ("before", "after"):
            _write_sound(np.zeros((1, 8)), 8000, tmp_path / f"{index}-{row}.wav")
    samples = read_samples(tmp_path)
    assert samples.animation is not None
    assert samples.animation.startswith("data:image/gif;base64,")
    assert [sorted(sample.media) for sample in samples.sounds] == [["original", "pruned"]] * 2


def test_no_samples_are_none_and_damaged_ones_one_line(tmp_path: Path) -> None:
    assert read_samples(tmp_path) == Samples()
    sheet(tmp_path, 32)
    (tmp_path / "before-after.png").write_bytes(b"damaged")
    with pytest.raises(RunStoreError, match="run again"):
        read_samples(tmp_path)
    (tmp_path / "samples.json").write_text('{"rows": 3}')
    with pytest.raises(RunStoreError, match="run again"):
        read_samples(tmp_path)
