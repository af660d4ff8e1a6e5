"""Files of exported networks are opened by the runtime of their format, or refused in one line."""

import sys
from pathlib import Path

import pytest
import torch

from ldpruner.errors import ExportError, UnsafeFile
from ldpruner.pipelines.sessions import FILES, PACKAGES, open_session

CPU = torch.device("cpu")
NEEDING = [file_format for file_format, packages in PACKAGES.items() if packages]


@pytest.mark.parametrize("file_format", NEEDING)
def test_a_missing_package_names_the_extra(file_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGES[file_format][0], None)
    with pytest.raises(ExportError, match=r"needs \w+: pip install 'ld-pruner\[export\]'"):
        open_session(file_format, tmp_path, CPU, trusted=False)


@pytest.mark.parametrize("file_format", FILES)
def test_a_damaged_file_is_one_line(file_format: str, tmp_path: Path) -> None:
    (tmp_path / FILES[file_format]).write_bytes(b"damaged")
    with pytest.raises(ExportError, match=r"cannot open .*; export again") as caught:
        open_session(file_format, tmp_path, CPU, trusted=True)
    assert "\n" not in str(caught.value)


def test_a_file_that_can_run_code_needs_trust(tmp_path: Path) -> None:
    with pytest.raises(UnsafeFile, match=r"can run code .* trust_programs=True"):
        open_session("torch-export", tmp_path, CPU, trusted=False)
