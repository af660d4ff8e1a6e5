"""Picture and sound files of a folder."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io.wavfile
from PIL import Image

from ldpruner.errors import DataError
from ldpruner.evaluation.media import find_media, read_picture, read_sound, resampled


def save_picture(path: Path, colour: str = "black") -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path)


def test_pictures_are_found_in_subfolders_in_order_and_before_sounds(tmp_path: Path) -> None:
    for name in ("b.png", "a/c.JPG", "z.webp"):
        save_picture(tmp_path / name)
    for name in ("a.wav", "readme.txt"):
        (tmp_path / name).write_text("")
    folder = find_media(tmp_path)
    assert [str(file.relative_to(tmp_path)) for file in folder.files] == ["a/c.JPG", "b.png", "z.webp"]


def test_a_folder_without_pictures_gives_its_sounds(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("")
    assert find_media(str(tmp_path)).files == (tmp_path / "a.wav",)
    with pytest.raises(DataError, match="no pictures or sounds"):
        find_media(tmp_path / "nowhere")


def test_the_digest_of_a_folder_changes_with_a_file(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png")
    before = find_media(tmp_path).digest
    assert find_media(tmp_path).digest == before
    save_picture(tmp_path / "a.png", "red")
    assert find_media(tmp_path).digest != before


def test_a_picture_is_turned_upright_by_its_exif_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("L", (6, 4)).save(tmp_path / "a.jpg", exif=exif)
    picture = read_picture(tmp_path / "a.jpg")
    assert (picture.mode, picture.size) == ("RGB", (4, 6))


@pytest.mark.parametrize(("name", "read"), [("a.png", read_picture), ("a.wav", lambda path: read_sound(path, 8000))])
def test_a_broken_file_is_named(tmp_path: Path, name: str, read: object) -> None:
    (tmp_path / name).write_bytes(b"neither picture nor sound")
    with pytest.raises(DataError, match=rf"cannot read .*{name}"):
        read(tmp_path / name)  # type: ignore[operator]


def test_a_sound_is_read_at_the_wanted_rate(tmp_path: Path) -> None:
    wave = np.sin(2 * np.pi * 200 * np.arange(16000) / 16000)
    scipy.io.wavfile.write(tmp_path / "a.wav", 16000, (wave * 32767).astype(np.int16))
    assert read_sound(tmp_path / "a.wav", 16000).shape == (1, 16000)
    sound = read_sound(tmp_path / "a.wav", 8000)
    expected = np.sin(2 * np.pi * 200 * np.arange(8000) / 8000)
    assert sound.shape == (1, 8000)
    np.testing.assert_allclose(sound[0, 100:-100], expected[100:-100], atol=0.01)
    assert resampled(sound, 8000, 8000) is sound
