"""Files are written whole or not at all."""

from pathlib import Path

import pytest

from ldpruner.errors import StorageError
from ldpruner.files import replacing, write_atomic


def test_content_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, "ä")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.case(number=7)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.png"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as partial:  # noqa: PT012
        assert partial.suffix == ".png"
        partial.write_text("half")
        assert path.read_text() == "old"
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_atomic(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("safe")
    link.symlink_to(target)
    write_atomic(link, "new")
    assert (target.read_text(), link.read_text(), link.is_symlink()) == ("safe", "new", False)


@pytest.mark.parametrize("path", ["nowhere/a.json", "/dev/null/a.json"])
def test_what_cannot_be_written_is_one_line(tmp_path: Path, path: str) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*a\.json: "):
        write_atomic(tmp_path / path, "")
