"""A finished run, and one with names from outside that would be markup."""

import json
from pathlib import Path

import pytest

from ldpruner.run_folder import RunFolder
from tests.publishing.conftest import finished, run

__all__ = ["finished", "run"]

HOSTILE = "<script>alert(1)</script> \"quoted\" 'too' & [/] {{ 7 * 7 }}"


@pytest.fixture
def hostile(run: Path) -> Path:
    """The run with hostile prompts."""
    sheet = RunFolder(run).samples / "samples.json"
    content = json.loads(sheet.read_text())
    for sample in content["samples"]:
        sample["prompt"] = HOSTILE
    sheet.write_text(json.dumps(content))
    return run
