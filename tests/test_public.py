"""The public names."""

import ast
from pathlib import Path

import pytest

import ldpruner

NAMES = [
    "Budget",
    "Evaluation",
    "History",
    "LdPrunerError",
    "Operator",
    "Outcome",
    "Plan",
    "Probe",
    "Score",
    "Scores",
    "Training",
    "adapt_lora",
    "evaluate",
    "export",
    "find_operators",
    "finetune",
    "load",
    "prune",
    "prune_",
    "push",
    "run",
    "save",
    "score_operators",
    "select",
    "write_report",
]


def test_the_public_names_are_these() -> None:
    assert ldpruner.__all__ == NAMES
    assert set(NAMES) <= set(dir(ldpruner))


@pytest.mark.parametrize("name", NAMES)
def test_each_name_comes_from_the_module_that_type_checkers_read(name: str) -> None:
    tree = ast.parse(Path(ldpruner.__file__).read_text(encoding="utf-8"))
    modules = {
        alias.name: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert getattr(ldpruner, name).__module__ == modules[name]


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        ldpruner.colour  # type: ignore[attr-defined]  # noqa: B018
