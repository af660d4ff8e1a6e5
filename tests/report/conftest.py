"""A finished run, and one with names from outside that would be markup."""

import json
from pathlib import Path
from typing import Any

import pytest

from ldpruner.run_folder import RunFolder
from ldpruner.scoring.store import RunStore
from tests.publishing.conftest import finished, run

__all__ = ["finished", "run"]

HOSTILE = "<script>alert(1)</script> \"quoted\" 'too' & [/] {{ 7 * 7 }}"


@pytest.fixture
def hostile(run: Path) -> Path:
    """The run with a hostile model, a hostile operator that is removed, and hostile prompts."""
    folder = RunFolder(run)
    sheet, plan = folder.samples / "samples.json", json.loads(folder.plan_file.read_text())
    content = json.loads(sheet.read_text())
    for sample in content["samples"]:
        sample["prompt"] = HOSTILE
    sheet.write_text(json.dumps(content))
    operator = folder.plan().removed[0].operator
    folder.plan_file.write_text(json.dumps(_renamed(plan, operator)))
    with RunStore(run, {}) as store:
        store.set_fact("scores", _renamed(store.fact("scores"), operator))
        store.set_fact("model", HOSTILE)
    return run


def _renamed(value: Any, operator: str) -> Any:
    """A JSON value with a hostile name for an operator."""
    if isinstance(value, dict):
        pairs = ((key, _renamed(part, operator)) for key, part in value.items())
        return {key: HOSTILE if key == "operator" and part == operator else part for key, part in pairs}
    return [_renamed(part, operator) for part in value] if isinstance(value, list) else value
