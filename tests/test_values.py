"""Values: checked when made, in words and by a type checker."""

import subprocess
import sys
from pathlib import Path

import pytest

import ldpruner
from ldpruner.errors import BudgetError, FinetuningError, ProbeError

MISUSES = {
    "Probe(sampels=3)": "sampels",
    'Probe(steps="many")': "steps",
    "Probe(prompts=3)": "prompts",
    'Probe(seed=0, guidance="strong")': "guidance",
    'Budget(latency="x")': "latency",
    "Budget(speed=0.5)": "speed",
    "Budget(operators=0.5)": "operators",
    "Training(steps=100)": "steps",
    'Training(max_train_steps="100")': "max_train_steps",
    'Training(lr_scheduler="zigzag")': "lr_scheduler",
    "Training(guidance_interval=0.5)": "guidance_interval",
    "Plan(removals=())": "removals",
    "Plan(removed=3)": "removed",
}
USES = (
    'Probe(samples=3, prompts=["a cat"], guidance=7.5, call={"height": 64})',
    'Probe(prompts="prompts.txt")',
    "Budget(latency=0.65, parameters=0.5)",
    "Budget(operators=3)",
    "Training(max_train_steps=100, learning_rate=1e-4, guidance_interval=(0.2, 0.7))",
    "Plan(removed=())",
)


CONFIGURATION = """
[mypy]
strict = true
[mypy-torch.*,diffusers.*,transformers.*,numpy.*,scipy.*,PIL.*,safetensors.*,tokenizers.*,accelerate.*,huggingface_hub.*]
follow_imports = skip
ignore_missing_imports = true
"""  # large libraries say nothing about our constructors


@pytest.mark.extensive
@pytest.mark.case(number=13)
@pytest.mark.slow
def test_mypy_rejects_every_misuse_of_a_constructor(tmp_path: Path) -> None:
    names = ", ".join(sorted({line.split("(")[0] for line in (*USES, *MISUSES)}))
    lines = [f"from ldpruner import {names}", *USES, *MISUSES]
    (tmp_path / "script.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "mypy.ini").write_text(CONFIGURATION, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--follow-imports", "silent", "script.py"]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    errors = [line for line in answer.splitlines() if line.startswith("script.py") and "error" in line]
    rejected = {int(line.split(":")[1]) for line in errors}
    assert rejected == {len(USES) + 2 + place for place in range(len(MISUSES))}, answer


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda: ldpruner.Probe.model_validate({"sampels": 3}),
            ProbeError,
            "probe has no 'sampels' (=3); did you mean 'samples'? accepted: samples, steps, seed",
        ),
        (
            lambda: ldpruner.Budget.model_validate({"speed": 2}),
            BudgetError,
            "budget has no 'speed' (=2); accepted: latency, parameters",
        ),
        (lambda: ldpruner.Budget.model_validate({"latency": True}), BudgetError, "budget latency=True"),
        (
            lambda: ldpruner.Training.model_validate({"learning_rates": 1}),
            FinetuningError,
            "did you mean 'learning_rate'? accepted: max_train_steps, ",
        ),
        (lambda: ldpruner.Probe(samples=0), ProbeError, "probe samples=0"),
    ],
)
def test_a_wrong_field_is_one_line_with_what_is_accepted(make: object, error: type[Exception], words: str) -> None:
    assert callable(make)
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_replaced_field_is_checked() -> None:
    probe = ldpruner.Probe(samples=3)
    assert probe.replace(steps=4) == ldpruner.Probe(samples=3, steps=4)
    with pytest.raises(ProbeError, match="steps=0"):
        probe.replace(steps=0)
