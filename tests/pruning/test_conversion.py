"""Native pruned networks are plain networks of diffusers, and compute what stand-ins compute."""

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.operators.choosing import find_operators
from ldpruner.operators.patching import modified
from ldpruner.pipelines.running import networks
from ldpruner.selection.plan import Plan, PlannedRemoval
from tests.families import FAMILIES, Family

# Whole blocks of families, and what of their configuration changes.
BLOCKS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "flux": (("transformer_blocks.0", "single_transformer_blocks.1"), {"num_layers": 1, "num_single_layers": 1}),
    "stable-diffusion-3": (("transformer_blocks.0",), {"num_layers": 2, "dual_attention_layers": []}),
    "pixart-sigma": (("transformer_blocks.1",), {"num_layers": 1}),
    "dit": (("transformer_blocks.1",), {"num_layers": 1}),
    "wan": (("blocks.0",), {"num_layers": 2}),
    "stable-diffusion-xl": (("mid_block",), {"mid_block_type": None}),
}
OPENS_WITHOUT_LDPRUNER = """
import sys
sys.modules["ldpruner"] = None
import safetensors.torch, torch
from diffusers import DiffusionPipeline
inputs = safetensors.torch.load_file("inputs.safetensors")
pipeline = DiffusionPipeline.from_pretrained("pruned")
network = getattr(pipeline, "COMPONENT")
names = dict(network.named_parameters())
assert set(names) == set(inputs) and all(torch.equal(names[name], inputs[name]) for name in inputs)
print(type(network).__module__)
"""


def network_of(pipeline: DiffusionPipeline, component: str | None = None) -> Any:
    return networks(pipeline)[component or "transformer"]


def plan_of(family: Family, pipeline: DiffusionPipeline, names: Sequence[str]) -> Plan:
    operators = {operator.name: operator for operator in find_operators(pipeline, family.component, family.call)}
    return Plan(
        removed=tuple(PlannedRemoval(removal=operators[name].candidates[-1].removal) for name in names),
        component=operators[names[0]].component,
        provenance={"probe": {"call": dict(family.call)}},
    )


@pytest.mark.case(number=52)
@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
@pytest.mark.parametrize("name", BLOCKS)
def test_whole_blocks_are_gone_from_a_plain_folder_of_diffusers(name: str, tmp_path: Path) -> None:
    names, changed = BLOCKS[name]
    family = FAMILIES[name]
    pipeline = family.pipeline()
    plan = plan_of(family, pipeline, names)
    pruned = ldpruner.prune(pipeline, plan)
    network = network_of(pruned, plan.component)
    assert {field: network.config[field] for field in changed} == changed
    with modified(network_of(pipeline, plan.component), [planned.removal for planned in plan.removed]):
        expected = family.sample(pipeline)
    assert torch.equal(family.sample(pruned), expected)
    ldpruner.save(pruned, tmp_path / "pruned")
    plain = DiffusionPipeline.from_pretrained(tmp_path / "pruned")
    assert type(network_of(plain, plan.component)) is network.unpruned_class
    assert torch.equal(family.sample(plain), expected)
    assert torch.equal(family.sample(ldpruner.load(tmp_path / "pruned")), expected)
    assert not list((tmp_path / "pruned").rglob("*.py"))


@pytest.mark.extensive
def test_a_native_folder_opens_in_a_process_without_ldpruner(tmp_path: Path) -> None:
    family = FAMILIES["flux"]
    pipeline = family.pipeline()
    pruned = ldpruner.prune(pipeline, plan_of(family, pipeline, ["transformer_blocks.0"]))
    ldpruner.save(pruned, tmp_path / "pruned")
    weights = {name: weight.contiguous() for name, weight in network_of(pruned).named_parameters()}
    safetensors.torch.save_file(weights, tmp_path / "inputs.safetensors")
    code = OPENS_WITHOUT_LDPRUNER.replace("COMPONENT", "transformer")
    opened = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert opened.returncode == 0, opened.stderr
    assert opened.stdout.strip().startswith("diffusers.")


@pytest.mark.parametrize("name", ["stable-diffusion-3-controlnet", "wan-vace"])
def test_blocks_that_depend_on_their_place_keep_stand_ins(name: str) -> None:
    family = FAMILIES[name]
    pipeline = family.pipeline()
    block = "blocks.0" if name == "wan-vace" else "transformer_blocks.0"
    plan = plan_of(family, pipeline, [block])
    pruned = ldpruner.prune(pipeline, plan)
    with modified(network_of(pipeline), [planned.removal for planned in plan.removed]):
        assert torch.equal(family.sample(pruned), family.sample(pipeline))
    assert [removal["operator"] for removal in network_of(pruned).config["removals"]] == [block]


def test_pruning_in_place_gives_the_same_network() -> None:
    family = FAMILIES["flux"]
    pipeline = family.pipeline()
    plan = plan_of(family, pipeline, ["transformer_blocks.0", "transformer_blocks.1.attn"])
    pruned = ldpruner.prune(pipeline, plan)
    network = network_of(pipeline)
    assert ldpruner.prune_(pipeline, plan).transformer is network
    assert dict(network_of(pruned).config) == dict(network.config)
    assert torch.equal(family.sample(pipeline), family.sample(pruned))


def test_pruning_twice_names_what_left_by_the_original(tmp_path: Path) -> None:
    family = FAMILIES["stable-diffusion-3"]
    pipeline = family.pipeline()
    pruned = ldpruner.prune(pipeline, plan_of(family, pipeline, ["transformer_blocks.0"]))
    further = ldpruner.prune(pruned, plan_of(family, pruned, ["transformer_blocks.0", "transformer_blocks.1.ff"]))
    config = network_of(further).config
    assert config["_removed"] == ["transformer_blocks.0", "transformer_blocks.1"]
    assert [removal["operator"] for removal in config["removals"]] == ["transformer_blocks.0.ff"]
    ldpruner.save(further, tmp_path / "pruned")
    assert torch.equal(family.sample(ldpruner.load(tmp_path / "pruned")), family.sample(further))


def test_a_probe_gives_the_images_that_a_plan_does_not_keep(caplog: pytest.LogCaptureFixture) -> None:
    family = FAMILIES["stable-diffusion-img2img"]
    pipeline = family.pipeline()
    probe = ldpruner.Probe(samples=1, steps=2, call=dict(family.call))
    plan = plan_of(family, pipeline, ["mid_block"]).replace(provenance={"probe": probe.model_dump(mode="json")})
    assert network_of(ldpruner.prune(pipeline, plan, probe=probe), "unet").mid_block is None
    with caplog.at_level(logging.WARNING):
        assert network_of(ldpruner.prune(pipeline, plan), "unet").mid_block is not None
    assert "keep stand-ins" in caplog.text


def test_where_the_pipeline_cannot_be_run_blocks_keep_stand_ins(caplog: pytest.LogCaptureFixture) -> None:
    family = FAMILIES["flux"]
    pipeline = family.pipeline()
    plan = plan_of(family, pipeline, ["transformer_blocks.0"]).replace(
        provenance={"probe": {"call": {"height": "tall"}}}
    )
    with caplog.at_level(logging.WARNING):
        pruned = ldpruner.prune(pipeline, plan)
    assert "keep stand-ins" in caplog.text
    assert torch.isfinite(family.sample(pruned)).all()
