"""The captions and classes of a folder."""

import logging
from pathlib import Path

import pytest

from ldpruner.errors import DataError
from ldpruner.finetuning.metadata import read_metadata

NAMES = ("0.png", "a/1.png")


def write(folder: Path, listing: str, text: str | bytes) -> None:
    (folder / listing).write_bytes(text.encode() if isinstance(text, str) else text)


@pytest.mark.parametrize(
    ("listing", "text"),
    [
        ("metadata.csv", 'file_name,text\n0.png,"a cat, asleep"\n./a/1.png,\n'),
        ("metadata.csv", '\ufefffile_name,text\r\n0.png,"a cat, asleep"\r\n\r\na//1.png,\r\n'),
        (
            "metadata.jsonl",
            '{"file_name": "0.png", "text": "a cat, asleep"}\n\n{"text": "", "file_name": "a/1.png"}\n',
        ),
    ],
)
def test_rows_are_known_by_their_file(tmp_path: Path, listing: str, text: str) -> None:
    write(tmp_path, listing, text)
    rows = read_metadata(tmp_path, NAMES)
    assert {name: row["text"] for name, row in rows.items()} == {"0.png": "a cat, asleep", "a/1.png": ""}


def test_a_folder_may_have_no_metadata(tmp_path: Path) -> None:
    assert read_metadata(tmp_path, NAMES) == {}


@pytest.mark.parametrize(
    ("listing", "text", "words"),
    [
        pytest.param("metadata.csv", f"file_name,text\n0.png,{'x' * 200_000}\n", "field limit", id="huge-field"),
        pytest.param("metadata.jsonl", "[" * 100_000 + "]" * 100_000, "RecursionError", id="deep"),
        pytest.param("metadata.jsonl", '{"file_name": "0.png", "n": ' + "9" * 5000 + "}", "digits", id="long-number"),
        pytest.param("metadata.jsonl", "3\n", "line 1: 3 is no object", id="number"),
        pytest.param("metadata.jsonl", '["0.png"]\n', "is no object", id="list"),
        pytest.param("metadata.jsonl", "{file_name\n", "cannot read", id="no-json"),
        pytest.param(
            "metadata.jsonl", '{"text": "a cat"}\n', "file_name=None names no file; the row has text", id="no-name"
        ),
        pytest.param("metadata.jsonl", '{"file_name": 3}\n', "file_name=3 names no file", id="name-is-a-number"),
        pytest.param("metadata.jsonl", '{"file_name": "0\\u0000.png"}\n', "names no file", id="nul-in-name"),
        pytest.param(
            "metadata.jsonl", '{"file_name": "0.png", "file_name": "1.png"}\n', "comes twice", id="name-twice"
        ),
        pytest.param(
            "metadata.jsonl",
            '{"file_name": "0.png"}\n{"file_name": "./0.png"}\n',
            "line 2: file_name='0.png' comes twice",
            id="file-twice",
        ),
        pytest.param(
            "metadata.jsonl",
            '{"file_name": "9.png"}\n',
            "none of its 1 rows names a file of the folder, such as '9.png'",
            id="no-file",
        ),
        pytest.param("metadata.jsonl", "", "none of its 0 rows", id="empty-json"),
        pytest.param("metadata.csv", "", "none of its 0 rows", id="empty-csv"),
        pytest.param("metadata.csv", "name\nx\n", "line 2: file_name=None", id="no-column"),
        pytest.param("metadata.csv", "file_name,text\n0.png,a cat, asleep\n", "3 fields for 2 columns", id="comma"),
        pytest.param("metadata.csv", "file_name,text\n0.png\n", "1 fields for 2 columns", id="too-few"),
        pytest.param("metadata.csv", "file_name,text,text\n0.png,a,b\n", "a column comes twice", id="column-twice"),
        pytest.param("metadata.csv", 'file_name,text\n0.png,"a"b\n', "cannot read", id="quotes"),
        pytest.param("metadata.csv", b"file_name,text\n0.png,\xff\n", "UnicodeDecodeError", id="encoding"),
        pytest.param("metadata.csv", "file_name,text\n0\0.png,a\n", "names no file|NUL", id="nul"),
    ],
)
@pytest.mark.case(name="metadata")
def test_what_is_no_metadata_is_one_line(tmp_path: Path, listing: str, text: str | bytes, words: str) -> None:
    write(tmp_path, listing, text)
    with pytest.raises(DataError, match=words) as caught:
        read_metadata(tmp_path, NAMES)
    assert listing in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_two_files_of_metadata_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "metadata.csv", "file_name\n0.png\n")
    write(tmp_path, "metadata.jsonl", '{"file_name": "0.png"}\n')
    with pytest.raises(DataError, match="keep one"):
        read_metadata(tmp_path, NAMES)


def test_a_row_of_a_missing_file_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "metadata.csv", "file_name\n0.png\n9.png\n")
    with caplog.at_level(logging.WARNING):
        assert read_metadata(tmp_path, NAMES).keys() == {"0.png", "9.png"}
    assert "1 rows name files that are not there: ['9.png']" in caplog.text
