"""Picture and sound files of a folder."""

import io
import resource
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io.wavfile
import soundfile
from PIL import Image, ImageOps

from ldpruner.errors import DataError
from ldpruner.evaluation import media
from ldpruner.evaluation.media import find_media, read_picture, read_sound, resampled, rgb


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


def png(width: int, height: int, mode: int = 2) -> bytes:
    """A PNG of some size without its data."""
    header = struct.pack(">IIBBBBB", width, height, 8, mode, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.case(number=10)
def test_16_bit_grey_is_scaled_to_8_bits(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "grey.png")
    pixels = np.asarray(read_picture(tmp_path / "grey.png"))
    assert np.array_equal(pixels, np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2))


@pytest.mark.case(number=10)
@pytest.mark.parametrize(("dtype", "largest"), [(np.uint16, 65535), (np.int32, 65535), (np.float32, 1)])
def test_every_mode_of_more_than_8_bits_is_scaled(dtype: Any, largest: float) -> None:
    levels = np.array([[0, largest / 5, largest]]).astype(dtype)
    assert np.asarray(rgb(Image.fromarray(levels)))[0, :, 1].tolist() == [0, 51, 255]


@pytest.mark.case(number=10)
@pytest.mark.parametrize(
    "levels", [np.array([[70000]], np.int32), np.array([[-1.0]], np.float32), np.full((1, 1), np.nan, np.float32)]
)
def test_levels_of_no_known_scale_are_refused(levels: Any) -> None:
    with pytest.raises(DataError, match="scale them to 0 to"):
        rgb(Image.fromarray(levels))


@pytest.mark.case(name="decompression-bombs")
@pytest.mark.parametrize("side", [12_000, 60_000, 2**31 - 1])
def test_a_picture_that_claims_a_huge_size_is_refused_before_memory_is_taken(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png(side, side))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"cannot read .*bomb\.png") as caught:
        read_picture(tmp_path / "bomb.png")
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


@pytest.mark.case(name="eps-named")
@pytest.mark.parametrize("name", ["drawing.png", "drawing.jpg", "drawing.webp", "drawing.bmp"])
def test_a_drawing_does_not_reach_the_reader_that_runs_a_program(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import EpsImagePlugin

    def run(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    (tmp_path / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(DataError, match="cannot read"):
        read_picture(tmp_path / name)


@pytest.mark.case(name="picture-errors")
def test_whatever_a_reader_raises_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_picture(tmp_path / "a.png")
    for error in (
        SyntaxError("not a TIFF file"),
        struct.error("short"),
        MemoryError(),
        IndexError("a\nb"),
        KeyError(1),
    ):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(ImageOps, "exif_transpose", fail)
        with pytest.raises(DataError, match=r"cannot read .*a\.png") as caught:
            read_picture(tmp_path / "a.png")
        assert "\n" not in str(caught.value)


def test_a_damaged_orientation_is_one_line(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.new("RGB", (4, 4)).save(data, "WEBP", exif=b"Exif\0\0\x80M\0*\0\0\0\x08")
    (tmp_path / "a.webp").write_bytes(data.getvalue())
    with pytest.raises(DataError, match="not a TIFF file"):
        read_picture(tmp_path / "a.webp")


@pytest.mark.parametrize(
    ("wave", "rate", "words"),
    [
        (np.zeros(0), 8000, "no samples"),
        (np.full(9, np.nan), 8000, "not finite"),
        (np.zeros(9), 10, "a sampling rate of 10 Hz"),
        (np.zeros(9), 100_000_000, "a sampling rate of 100000000 Hz"),
        (np.zeros(99), 8000, "too many for one sound"),
    ],
)
def test_a_sound_that_is_none_is_one_line(
    tmp_path: Path, wave: Any, rate: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "MAX_SOUND_VALUES", 50)
    soundfile.write(tmp_path / "a.wav", wave, rate, subtype="FLOAT")
    with pytest.raises(DataError, match=rf"cannot read .*a\.wav: .*{words}"):
        read_sound(tmp_path / "a.wav", 8000)


def test_a_folder_of_no_possible_name_is_one_line() -> None:
    for path in ("a\0b", "x" * 5000):
        with pytest.raises(DataError):
            find_media(path)
