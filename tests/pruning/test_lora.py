"""LoRAs are rewritten for pruned networks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ldpruner
from ldpruner.errors import LoraMismatch, StorageError
from ldpruner.operators.discovery import Removal
from ldpruner.selection.plan import PlannedRemoval
from tests.families import FAMILIES
from tests.pruning.conftest import assert_one_line
from tests.test_adapters import FEWER, MOVED, PLANS, add_lora, close, moved, network, pruned, samples, save_lora
from tests.test_adapters import three_blocks as three_blocks

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.case(number=42)]  # of PEFT

FILE = "pytorch_lora_weights.safetensors"


def plan(removals: list[Removal], **fields: Any) -> ldpruner.Plan:
    return ldpruner.Plan(removed=tuple(PlannedRemoval(removal=removal) for removal in removals), **fields)


@pytest.mark.parametrize("name", ["flux", "stable-diffusion", "stable-diffusion-xl"])
@pytest.mark.parametrize("target", ["pipeline", "folder", "plan", "plan file"])
def test_an_adapted_file_has_what_the_pruned_pipeline_loads(name: str, target: str, tmp_path: Path) -> None:
    original = FAMILIES[name].pipeline()
    removals = [removal for removal in PLANS[name] if removal.operator.count(".") > 1]
    smaller = ldpruner.prune(original, plan(removals, component="unet" if "stable" in name else "transformer"))
    add_lora(network(original))
    lora = save_lora(original, tmp_path) / FILE
    adapted = ldpruner.adapt_lora(lora, pruned_as(target, smaller, plan(removals), tmp_path), tmp_path / "out" / FILE)
    assert load_file(tmp_path / "out" / FILE).keys() == adapted.keys() < load_file(lora).keys()
    names = [key.partition(".")[2].split(".lora")[0] for key in adapted]
    assert not any(key.startswith(removal.operator) for key in names for removal in removals)
    outputs = []
    for folder in (tmp_path, tmp_path / "out"):
        smaller.load_lora_weights(folder, weight_name=FILE)
        outputs.append(samples(name, smaller))
        smaller.unload_lora_weights()
    assert torch.equal(*outputs)


def pruned_as(target: str, pipeline: Any, made_by: ldpruner.Plan, folder: Path) -> Any:
    if target == "folder":
        ldpruner.save(pipeline, folder / "pruned")
        return folder / "pruned"
    if target == "plan file":
        made_by.write(folder / "plan.json")
        return folder / "plan.json"
    return made_by if target == "plan" else pipeline


@pytest.mark.parametrize("target", ["pipeline", "plan"])
def test_blocks_that_moved_up_are_renumbered(target: str, tmp_path: Path) -> None:
    original = three_blocks()
    smaller = moved(original)
    add_lora(network(original), rank_pattern={"^transformer_blocks.2.attn.to_q": 3})
    lora = save_lora(original, tmp_path) / FILE
    removals = [Removal(operator=name, modification="identity") for name in MOVED]
    adapted = ldpruner.adapt_lora(lora, smaller if target == "pipeline" else plan(removals), tmp_path / FILE)
    blocks = {".".join(key.split(".")[1:3]) for key in adapted}
    assert blocks == {
        f"{part}.{index}" for part in ("transformer_blocks", "single_transformer_blocks") for index in (0, 1)
    }
    with safe_open(tmp_path / FILE, framework="pt") as opened:
        fields = json.loads(opened.metadata()["lora_adapter_metadata"])
    assert fields["transformer.rank_pattern"] == {"^transformer_blocks.1.attn.to_q": 3}
    smaller.load_lora_weights(tmp_path)
    loaded = samples("flux", smaller)
    original.fuse_lora()
    original.unload_lora_weights()
    assert close(loaded, samples("flux", moved(original)))
    assert FEWER["num_layers"] == len(smaller.transformer.transformer_blocks)


@pytest.mark.parametrize("name", ["stable-diffusion", "flux"])
def test_other_formats_are_read_with_their_alphas(name: str, tmp_path: Path) -> None:
    original = FAMILIES[name].pipeline()
    smaller = pruned(name, original)
    start = "lora_unet_" if name == "stable-diffusion" else "lora_transformer_"
    weights = {}
    torch.manual_seed(1)
    for module, part in network(original).named_modules():
        if module.endswith(("to_q", "to_k")):
            key = f"{start}{module.replace('.', '_')}"
            weights[f"{key}.lora_down.weight"] = torch.randn(2, part.in_features)
            weights[f"{key}.lora_up.weight"] = torch.randn(part.out_features, 2)
            weights[f"{key}.alpha"] = torch.tensor(1.0)
    save_file(weights, tmp_path / FILE)
    smaller.load_lora_weights(tmp_path / FILE)
    expected = samples(name, smaller)
    smaller.unload_lora_weights()
    ldpruner.adapt_lora(tmp_path / FILE, smaller, tmp_path / "adapted.safetensors")
    smaller.load_lora_weights(tmp_path / "adapted.safetensors")
    assert close(samples(name, smaller), expected)


def test_weights_of_text_encoders_stay() -> None:
    removals = [Removal(operator="mid_block", modification="identity")]
    weights = {
        f"{module}.lora_{side}.weight": torch.zeros(2, 2)
        for module in ("unet.mid_block.to_q", "unet.conv_in", "text_encoder.text_model.layers.0.q_proj")
        for side in "AB"
    }
    adapted = ldpruner.adapt_lora(weights, plan(removals))
    assert {key.split(".lora")[0] for key in adapted} == {"unet.conv_in", "text_encoder.text_model.layers.0.q_proj"}


def test_the_projection_of_a_shortcut_stays() -> None:
    block = "down_blocks.1.resnets.0"
    removals = [Removal(operator=block, modification="shortcut", source="conv_shortcut", cascaded=("conv_in",))]
    names = (f"{block}.conv1", f"{block}.conv_shortcut", "conv_in", "conv_out")
    weights = {f"unet.{name}.lora_A.weight": torch.zeros(2, 2) for name in names}
    adapted = ldpruner.adapt_lora(weights, plan(removals))
    assert list(adapted) == [f"unet.{block}.conv_shortcut.lora_A.weight", "unet.conv_out.lora_A.weight"]


def test_what_cannot_be_adapted_is_one_line(tiny: Any, tmp_path: Path) -> None:
    removals = plan([Removal(operator="mid_block", modification="identity")])
    weights = {"unet.mid_block.to_q.lora_A.weight": torch.zeros(2, 2)}
    kept = {"unet.conv_in.lora_A.weight": torch.zeros(2, 2)}
    (tmp_path / FILE).write_text("no weights")
    cases: list[tuple[Any, Any, Any, type[Exception], str]] = [
        (weights, removals, None, LoraMismatch, "has no weight for unet as pruned"),
        ({"conv_in.lora_A.weight": torch.zeros(2, 2)}, removals, None, LoraMismatch, "names no network"),
        (tmp_path / FILE, removals, None, LoraMismatch, "cannot read"),
        (tmp_path / "none.safetensors", removals, None, LoraMismatch, "cannot read"),
        (weights, tiny, None, LoraMismatch, "LDMPipeline loads no LoRA"),
        (tmp_path / FILE, FAMILIES["flux"].pipeline(), None, LoraMismatch, "FluxPipeline cannot read the LoRA"),
        (kept, removals, tmp_path / FILE / "below.safetensors", StorageError, "cannot write"),
    ]
    for lora, target, out, error, message in cases:
        with pytest.raises(error) as caught:
            ldpruner.adapt_lora(lora, target, out)
        assert_one_line(caught.value, message)
