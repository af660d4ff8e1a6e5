"""A model card says what was removed, what that cost, and how to open it."""

import pytest
import yaml

from ldpruner import Budget, Plan
from ldpruner.budget import Predicted
from ldpruner.evaluation.evaluate import Evaluation
from ldpruner.evaluation.measures import Measure
from ldpruner.operators.discovery import Removal
from ldpruner.profiling.machine import Machine
from ldpruner.publishing.card import LICENSE_UNKNOWN, Card
from ldpruner.publishing.origin import Origin
from ldpruner.selection.plan import PlannedRemoval

EVALUATION = Evaluation(
    metrics=(
        Measure(metric="latency_ratio", original=1.0, pruned=0.65, interval=(0.6, 0.7)),
        Measure(metric="frechet_distance", original=3.0, pruned=3.1, interval=(2.9, 3.4), noise_floor=0.4),
    ),
    protocol={
        "samples": 64,
        "features": "/home/me/feature-network",
        "probe": {"steps": 10, "prompts": ["a", "b"]},
        "reference": {"samples": 30, "folder": "/home/me/pictures", "digest": "abc"},
        "seeds": {"samples": 1, "noise_floor": 2},
        "device": "cpu",
        "versions": {"torch": "2.9"},
    },
)


def card(**changes: object) -> Card:
    removal = Removal(operator="mid_block", modification="identity", cascaded=("norm",))
    values: dict[str, object] = {
        "repo": "owner/small",
        "pipeline": "LDMPipeline",
        "component": "unet",
        "network": "UNet2DModel",
        "parameters": 1234,
        "origin": Origin("owner/base", "owner/base", {"license": "mit"}),
        "plan": Plan(
            removed=(PlannedRemoval(removal=removal, score=2),),
            budget=Budget(latency=0.65),
            rule="knapsack",
            predicted=Predicted(latency=0.64, parameters=0.7, macs=0.6, memory=0.8),
            machine=Machine(device="cpu", precision="float32", threads=2, versions={}),
        ),
        "is_finetuned": False,
        "needs_code": False,
        "task": "text-to-image",
    }
    return Card(**{**values, **changes})  # type: ignore[arg-type]


def test_the_header_is_what_the_hub_reads() -> None:
    _, header, text = card().text().split("---\n", 2)
    assert yaml.safe_load(header) == {
        "license": "mit",
        "base_model": "owner/base",
        "base_model_relation": "finetune",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["diffusers", "ld-pruner", "pruned"],
    }
    assert text.startswith("\n# small\n")


def test_a_native_pipeline_needs_nothing_and_another_says_what_its_code_is_for() -> None:
    native, custom = card().text(), card(needs_code=True, revision="v2").text()
    assert 'DiffusionPipeline.from_pretrained("owner/small")' in native
    assert "trust_remote_code" not in native
    assert 'from_pretrained("owner/small", revision="v2", trust_remote_code=True)' in custom
    assert 'ldpruner.load("owner/small", revision="v2")' in custom


def test_the_plan_is_summed_up_with_what_it_was_predicted_to_leave() -> None:
    text = card().text()
    assert "`latency=0.65`" in text
    assert "64.0 % of the latency, 70.0 % of the parameters, 60.0 % of the MACs" in text
    assert "`cpu with 2 threads in float32`" in text
    assert "| `mid_block` | identity | 2 | `norm` |" in text
    assert "Not measured." in text


def test_results_come_with_their_protocol_and_without_local_folders() -> None:
    text = card(evaluation=EVALUATION).text()
    assert "| frechet distance ↓ | 3 | 3.1 | 2.9 to 3.4 | 0.4 |" in text
    assert r"samples 64; steps 10; prompts 2; seed 1 \(samples\) and 2 \(noise floor\)" in text
    assert "30 files, digest abc" in text
    assert "feature-network" in text
    assert "/home" not in text


def test_results_of_before_finetuning_say_so() -> None:
    before = card(evaluation=EVALUATION, is_finetuned=True, evaluated="pruned").text()
    after = card(evaluation=EVALUATION, is_finetuned=True, evaluated="recovered").text()
    assert "pruned before finetuning" in before
    assert "before finetuning" not in after
    assert "was finetuned" in after


def test_samples_are_shown_with_their_prompts() -> None:
    text = card(
        samples=("sheet.png", "0-original.wav", "x y.png"), rows=("original", "pruned"), prompts=("a `cat` <b>",)
    ).text()
    assert "![sheet.png](samples/sheet.png)" in text
    assert "[0-original.wav](samples/0-original.wav)" in text
    assert "(samples/x%20y.png)" in text
    assert "1. ``a `cat` <b>``" in text
    assert "None is finetuned" not in text
    assert "None is finetuned" in card(samples=("a.png",), rows=("original", "pruned"), is_finetuned=True).text()


@pytest.mark.parametrize("text", ["x\n---\nlicense: mit", "<script>", "](http://x)", "a|b\n# c", "\x1b[31m"])
def test_text_from_outside_stays_text(text: str) -> None:
    origin = Origin(text, None, {"license": text})
    removal = Removal(operator=text, modification="identity")
    plan = Plan(removed=(PlannedRemoval(removal=removal),))
    shown = card(origin=origin, plan=plan, component=text).text()
    header = shown.split("\n---\n", 1)[0].removeprefix("---\n")
    assert yaml.safe_load(header)["license"] == text
    body = shown[len(header) :]
    assert "\x1b" not in body
    assert "\n# c" not in body
    assert "<script>" not in body.replace("`<script>`", "")
    assert "](http://x)" not in body.replace("`](http://x)`", "")


def test_a_licence_that_is_not_known_is_said_to_be_so() -> None:
    text = card(origin=Origin("local")).text()
    assert LICENSE_UNKNOWN in text
    assert "base_model" not in text
    assert "[local]" not in text
