"""Pruned networks under the LoRAs, IP-Adapters, caches and fused projections of diffusers."""

import copy
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cache_dit
import peft
import pytest
import torch
from diffusers import ControlNetModel, FirstBlockCacheConfig
from diffusers.configuration_utils import FrozenDict
from diffusers.hooks import LayerSkipConfig, MagCacheConfig, apply_layer_skip
from diffusers.training_utils import _collate_lora_metadata
from torch import nn

import ldpruner
from ldpruner.adapters import _original_attentions
from ldpruner.operators.discovery import Removal
from ldpruner.runtime import adapting_class
from ldpruner.selection.plan import PlannedRemoval
from ldpruner.stand_ins import ORIGINAL, REMOVED, StandIn, new_name, old_name
from tests.families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore")  # of PEFT, torchao and bitsandbytes

JOINT = ("encoder_hidden_states", "hidden_states")
XL = "down_blocks.1.attentions.0.transformer_blocks"
# A whole block, a branch and projections.
PLANS: dict[str, list[Removal]] = {
    "flux": [
        Removal(operator="transformer_blocks.1", modification="identity", source=JOINT),
        Removal(operator="transformer_blocks.0.attn.to_q", modification="identity"),
        Removal(operator="single_transformer_blocks.0", modification="identity", source=JOINT),
    ],
    "stable-diffusion-3": [
        Removal(operator="transformer_blocks.0", modification="identity", source=JOINT),
        Removal(operator="transformer_blocks.1.attn.to_k", modification="identity"),
        Removal(operator="transformer_blocks.1.ff", modification="zero"),
    ],
    "stable-diffusion-xl": [
        Removal(operator=f"{XL}.0.attn1.to_q", modification="identity"),
        Removal(operator=f"{XL}.1.attn2", modification="zero"),
        Removal(operator="up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_k", modification="identity"),
    ],
    "stable-diffusion": [
        Removal(operator="down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", modification="identity"),
        Removal(operator="mid_block.attentions.0.transformer_blocks.0.attn2", modification="zero"),
    ],
}
NAMES = list(PLANS)
TARGETS = ["to_q", "to_k", "to_out.0"]
"""Attentions have these."""


def component(name: str) -> str:
    return "unet" if "xl" in name or name == "stable-diffusion" else "transformer"


def network(pipeline: Any) -> Any:
    return pipeline.components.get("unet", pipeline.components.get("transformer"))


def pruned(name: str, pipeline: Any) -> Any:
    planned = tuple(PlannedRemoval(removal=removal) for removal in PLANS[name])
    return ldpruner.prune(pipeline, ldpruner.Plan(removed=planned, component=component(name)))


def samples(name: str, pipeline: Any) -> torch.Tensor:
    return FAMILIES[name].sample(pipeline)


def save_lora(pipeline: Any, folder: Path) -> Path:
    """Saves the LoRA of a denoiser as training scripts do."""
    kind, denoiser = next(
        (kind, part) for kind, part in pipeline.components.items() if kind in ("unet", "transformer")
    )
    layers = {f"{kind}_lora_layers": peft.get_peft_model_state_dict(denoiser)}
    pipeline.save_lora_weights(folder, **layers, **_collate_lora_metadata({kind: denoiser}))
    return folder


def add_lora(denoiser: Any, **settings: Any) -> None:
    torch.manual_seed(3)
    options = {"r": 2, "lora_alpha": 4, "target_modules": TARGETS, "init_lora_weights": False, **settings}
    denoiser.add_adapter(peft.LoraConfig(**options))


# LoRA


@pytest.mark.case(number=42)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "settings",
    [{}, pytest.param({"use_dora": True, "rank_pattern": {"to_k": 3}}, marks=pytest.mark.extensive)],
    ids=["lora", "dora"],
)
def test_a_lora_of_the_original_does_what_it_does_fused_before_pruning(
    name: str, settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    original = FAMILIES[name].pipeline()
    smaller = pruned(name, original)
    before = samples(name, smaller)
    add_lora(network(original), **settings)
    save_lora(original, tmp_path)
    original.fuse_lora()
    original.unload_lora_weights()
    expected = samples(name, pruned(name, original))
    with caplog.at_level(logging.WARNING, "ldpruner"):
        smaller.load_lora_weights(tmp_path)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "ldpruner.adapters"]
    assert "weights are dropped" in line
    assert close(samples(name, smaller), expected)
    assert not close(before, expected)
    smaller.fuse_lora()
    assert close(samples(name, smaller), expected)
    smaller.unfuse_lora()
    smaller.unload_lora_weights()
    assert close(samples(name, smaller), before)


def close(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-3, atol=1e-3)


@pytest.mark.case(number=42)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("targets", [TARGETS, "all-linear", r".*\.to_[qk]"], ids=["names", "all", "pattern"])
def test_an_adapter_targets_no_stand_in_and_is_saved_and_loaded(
    name: str, targets: list[str] | str, tmp_path: Path
) -> None:
    smaller = pruned(name, FAMILIES[name].pipeline())
    add_lora(network(smaller), target_modules=targets)
    removed = network(smaller).config.get(REMOVED, ())
    names = [module for module, _ in network(smaller).named_modules() if module.endswith("lora_A")]
    adapted = [old_name(name, removed) for name in names]
    gone = [removal.operator for removal in PLANS[name]]
    assert adapted
    assert not any(module.startswith(f"{operator}.") for module in adapted for operator in gone)
    expected = samples(name, smaller)
    save_lora(smaller, tmp_path)
    smaller.unload_lora_weights()
    assert not close(samples(name, smaller), expected)
    smaller.load_lora_weights(tmp_path)
    assert torch.equal(samples(name, smaller), expected)


@pytest.mark.case(number=42)
@pytest.mark.parametrize("name", ["flux", "stable-diffusion"])
def test_a_file_and_older_formats_load_as_well(name: str, tmp_path: Path) -> None:
    original = FAMILIES[name].pipeline()
    smaller, other = pruned(name, original), pruned(name, original)
    add_lora(network(original))
    weights = peft.get_peft_model_state_dict(network(original))
    kind = component(name)
    parts = {"lora_A": "lora.down", "lora_B": "lora.up"}
    older = {
        f"{kind}.{key.replace(part, parts[part])}": weights[key] for key in weights for part in parts if part in key
    }
    alphas = {f"{kind}.{key.split('.lora')[0]}.alpha": 4.0 for key in weights}
    network(smaller).load_lora_adapter(older, prefix=kind, network_alphas=alphas)
    network(original).save_lora_adapter(tmp_path)
    network(other).load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    assert close(samples(name, smaller), samples(name, other))
    assert not close(samples(name, smaller), samples(name, pruned(name, FAMILIES[name].pipeline())))


@pytest.mark.case(number=42)
def test_scales_of_parts_of_a_unet_are_understood(tmp_path: Path) -> None:
    original = FAMILIES["stable-diffusion"].pipeline()
    smaller = pruned("stable-diffusion", original)
    add_lora(network(original))
    smaller.load_lora_weights(save_lora(original, tmp_path), adapter_name="style")
    half, none = samples("stable-diffusion", smaller), {}
    for scales in ({"down": 0.0, "mid": 0.0, "up": 0.0}, {"down": 1.0, "mid": 1.0, "up": 1.0}):
        smaller.set_adapters("style", {"unet": scales})
        none[scales["mid"]] = samples("stable-diffusion", smaller)
    assert close(none[1.0], half)
    smaller.unload_lora_weights()
    assert close(none[0.0], samples("stable-diffusion", smaller))


ELSEWHERE = """
import sys
sys.modules["ldpruner"] = None  # cannot be imported
import torch
from diffusers import DiffusionPipeline
folder, prompt = sys.argv[1:]
pipeline = DiffusionPipeline.from_pretrained(folder + "/pruned", trust_remote_code=True)
pipeline.load_lora_weights(folder)
call = {"num_inference_steps": 2, "output_type": "latent", "height": 16, "width": 16}
generator = torch.Generator().manual_seed(0)
torch.save(pipeline(prompt=prompt, generator=generator, **call, return_dict=False)[0], folder + "/latents.pt")
"""


@pytest.mark.extensive
@pytest.mark.case(number=42)
@pytest.mark.slow
def test_a_lora_is_loaded_where_ldpruner_is_not_installed(tmp_path: Path) -> None:
    original = FAMILIES["stable-diffusion"].pipeline()
    smaller = pruned("stable-diffusion", original)
    add_lora(network(original))
    save_lora(original, tmp_path)
    ldpruner.save(smaller, tmp_path / "pruned")
    smaller.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    expected = smaller(prompt="a red cat", generator=torch.Generator().manual_seed(0), **SHORT).images
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path), "a red cat"]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "weights are dropped" in result.stderr
    assert torch.equal(torch.load(tmp_path / "latents.pt", weights_only=True), expected)


# Blocks that moved up


def without_blocks(original: Any, removed: list[str], fields: dict[str, Any]) -> Any:
    """The native form of a pruned network, made by hand: fewer blocks, by a smaller count in the configuration."""
    base: Any = type(original)
    smaller: Any = base.from_config({**original.config, **fields})
    moved = {new_name(key, removed): weight for key, weight in original.state_dict().items()}
    moved.pop(None, None)
    smaller.load_state_dict(moved)
    earlier = {name: original.config[name] for name in fields}
    smaller.register_to_config(**{REMOVED: removed, ORIGINAL: earlier})
    smaller.__class__ = adapting_class(base)
    return smaller.eval()


def three_blocks() -> Any:
    """A Flux of three blocks of either kind."""
    pipeline = FAMILIES["flux"].pipeline()
    config = {**pipeline.components["transformer"].config, "num_layers": 3, "num_single_layers": 3}
    torch.manual_seed(5)
    pipeline.transformer = type(pipeline.components["transformer"]).from_config(config).eval()
    return pipeline


MOVED = ["transformer_blocks.0", "single_transformer_blocks.1"]
FEWER = {"num_layers": 2, "num_single_layers": 2}


def moved(pipeline: Any) -> Any:
    other = copy.copy(pipeline)
    other.register_modules(transformer=without_blocks(pipeline.components["transformer"], MOVED, FEWER))
    return other


@pytest.mark.case(number=42)
def test_a_lora_of_the_original_is_renumbered_where_blocks_moved_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    original = three_blocks()
    smaller = moved(original)
    add_lora(original.transformer, rank_pattern={"^transformer_blocks.2.attn.to_q": 3})
    save_lora(original, tmp_path)
    original.fuse_lora()
    original.unload_lora_weights()
    expected = samples("flux", moved(original))
    with caplog.at_level(logging.WARNING, "ldpruner"):
        smaller.load_lora_weights(tmp_path)
    assert "transformer_blocks.0.attn.to_k" in caplog.text
    assert smaller.transformer.transformer_blocks[1].attn.to_q.r == {"default_0": 3}
    assert close(samples("flux", smaller), expected)


@pytest.mark.case(number=42)
@pytest.mark.parametrize("kept", [[0, 1], [0]])
def test_a_lora_that_covers_all_blocks_that_are_left_is_taken_for_the_pruned_networks_own(
    kept: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    smaller = moved(three_blocks())
    add_lora(smaller.transformer, target_modules=[f"transformer_blocks.{index}.attn.to_q" for index in kept])
    expected = samples("flux", smaller)
    save_lora(smaller, tmp_path)
    smaller.unload_lora_weights()
    with caplog.at_level(logging.INFO, "ldpruner"):
        smaller.load_lora_weights(tmp_path)
    is_own = len(kept) == 2
    assert torch.equal(samples("flux", smaller), expected) == is_own
    assert ("the pruned network" in caplog.text) == is_own  # else block 0 of the original, which is gone


@pytest.mark.case(number=42)
def test_a_control_lora_of_the_original_is_refused_where_blocks_moved_up() -> None:
    transformer = moved(three_blocks()).transformer
    transformer._overwritten_params = {"x_embedder.weight": torch.zeros(1)}  # diffusers keeps what it made wider
    with pytest.raises(ValueError, match="fuse it, and prune after that"):
        transformer.load_lora_adapter({})


# Other adapters


@pytest.mark.case(number=48)
@pytest.mark.parametrize("name", ["stable-diffusion", "stable-diffusion-xl"])
def test_each_layer_has_its_own_weights_of_an_ip_adapter(name: str) -> None:
    original = FAMILIES[name].pipeline()
    smaller = pruned(name, original)
    weights = ip_adapter(network(original))
    for pipeline in (original, smaller):
        network(pipeline)._load_ip_adapter_weights([copy.deepcopy(weights)])
    before, after = (network(pipeline).attn_processors for pipeline in (original, smaller))
    assert len(after) < len(before)
    layers = [layer for layer in after if "attn2" in layer]
    assert layers
    assert all(torch.equal(after[layer].to_k_ip[0].weight, before[layer].to_k_ip[0].weight) for layer in layers)
    loras = [network(pipeline)._load_ip_adapter_loras([weights])[0] for pipeline in (original, smaller)]
    assert loras[1].items() <= loras[0].items()
    assert len(loras[1]) < len(loras[0])


def ip_adapter(unet: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Random weights, as the file of an IP-Adapter with LoRAs has them."""
    width = unet.config.cross_attention_dim
    weights: dict[str, torch.Tensor] = {}
    for number, name in enumerate(unet.attn_processors):
        attention = unet.get_submodule(name.removesuffix(".processor"))
        for part in ("to_k", "to_v", "to_q", "to_out"):
            weights[f"{number}.{part}_lora.down.weight"] = torch.randn(1)
            weights[f"{number}.{part}_lora.up.weight"] = torch.randn(1)
        if "attn2" in name:
            for part in ("to_k_ip", "to_v_ip"):
                weights[f"{number}.{part}.weight"] = torch.randn(attention.to_k.weight.shape[0], width)
    projection = {"proj.weight": torch.randn(4 * width, 16), "proj.bias": torch.randn(4 * width)}
    norm = {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    return {"image_proj": {**projection, **norm}, "ip_adapter": weights}


@pytest.mark.case(number=48)
def test_an_ip_adapter_of_flux_is_renumbered_where_blocks_moved_up() -> None:
    original = three_blocks().transformer
    smaller = without_blocks(original, MOVED, FEWER)
    width, wide = original.config.joint_attention_dim, original.inner_dim
    weights = {
        f"{number}.{part}.{kind}": torch.randn(wide, width) if kind == "weight" else torch.randn(wide)
        for number in range(3)
        for part in ("to_k_ip", "to_v_ip")
        for kind in ("weight", "bias")
    }
    projection = {"proj.weight": torch.randn(4 * width, 16), "proj.bias": torch.randn(4 * width)}
    norm = {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    smaller._load_ip_adapter_weights([{"image_proj": {**projection, **norm}, "ip_adapter": weights}])
    for now, before in ((0, 1), (1, 2)):
        processor = smaller.attn_processors[f"transformer_blocks.{now}.attn.processor"]
        assert torch.equal(processor.to_k_ip[0].weight, weights[f"{before}.to_k_ip.weight"])
    smaller._internal_dict = FrozenDict({name: smaller.config[name] for name in smaller.config if name != ORIGINAL})
    with pytest.raises(ValueError, match="prune again"):
        smaller._load_ip_adapter_weights([{"image_proj": {**projection, **norm}, "ip_adapter": weights}])


@pytest.mark.case(number=48)
def test_a_pruned_pipeline_notes_which_attentions_the_original_has(tmp_path: Path) -> None:
    original = three_blocks()
    removals = [Removal(operator=name, modification="identity", source=JOINT) for name in MOVED]
    planned = tuple(PlannedRemoval(removal=removal) for removal in removals)
    smaller = ldpruner.prune(original, ldpruner.Plan(removed=planned, component="transformer"))
    ldpruner.save(smaller, tmp_path / "pruned")
    for pipeline in (smaller, ldpruner.load(tmp_path / "pruned")):
        denoiser: Any = pipeline.components["transformer"]
        assert set(denoiser.config[REMOVED]) == set(MOVED)
        assert {name: denoiser.config[ORIGINAL][name] for name in FEWER} == dict.fromkeys(FEWER, 3)
        attentions = list(original.transformer.attn_processors)
        assert _original_attentions(denoiser) == attentions


def test_textual_inversion_works() -> None:
    original = FAMILIES["stable-diffusion"].pipeline()
    smaller = pruned("stable-diffusion", original)
    before = smaller(prompt="a style", **SHORT).images
    smaller.load_textual_inversion({"style": torch.ones(1, 16)}, token="style")
    assert not close(smaller(prompt="a style", **SHORT).images, before)


SHORT: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent", "height": 16, "width": 16}


# Projections, slices, processors


@pytest.mark.case(number=50)
@pytest.mark.parametrize("name", [name for name in NAMES if "3" not in name])  # fails with the original as well
def test_attentions_with_all_their_projections_are_fused(name: str) -> None:
    smaller = pruned(name, FAMILIES[name].pipeline())
    denoiser = network(smaller)
    before, processors = samples(name, smaller), dict(denoiser.attn_processors)
    denoiser.fuse_qkv_projections()
    attentions = [part for part in denoiser.modules() if hasattr(part, "fuse_projections")]
    fused = [part for part in attentions if getattr(part, "fused_projections", False)]
    whole = [part for part in attentions if not any(isinstance(child, StandIn) for child in part.children())]
    assert fused == whole != attentions
    assert close(samples(name, smaller), before)
    denoiser.unfuse_qkv_projections()
    assert denoiser.attn_processors == processors
    assert close(samples(name, smaller), before)


@pytest.mark.case(number=50)
def test_a_controlnet_is_not_built_from_a_pruned_network() -> None:
    original = FAMILIES["stable-diffusion-xl"].pipeline()
    smaller = pruned("stable-diffusion-xl", original)
    ControlNetModel.from_unet(network(original))
    with pytest.raises(ValueError, match="such as a ControlNet, is built from the original network"):
        ControlNetModel.from_unet(network(smaller))


@pytest.mark.parametrize(
    ("change", "is_exact"),
    [
        (lambda pipeline: pipeline.enable_attention_slicing(1), True),
        (lambda pipeline: pipeline.unet.set_default_attn_processor(), True),
        (lambda pipeline: pipeline.enable_freeu(0.9, 0.2, 1.2, 1.4), False),
    ],
    ids=["slices", "processor", "freeu"],
)
def test_switches_of_unets_do_what_they_do_to_the_original(change: Callable[[Any], None], is_exact: bool) -> None:
    original = FAMILIES["stable-diffusion"].pipeline()
    for pipeline in (original, pruned("stable-diffusion", original)):
        before = samples("stable-diffusion", pipeline)
        change(pipeline)
        assert close(samples("stable-diffusion", pipeline), before) == is_exact


# Caches and gradient checkpointing


@pytest.mark.case(number=40)
@pytest.mark.parametrize("name", ["flux", "stable-diffusion-3", "stable-diffusion-xl"])
def test_gradients_are_the_same_with_gradient_checkpointing(name: str) -> None:
    smaller = pruned(name, FAMILIES[name].pipeline())
    denoiser, calls = network(smaller), []
    hook = denoiser.register_forward_pre_hook(lambda _, *call: calls.append(call), with_kwargs=True)
    samples(name, smaller)
    hook.remove()
    (args, kwargs), gradients = calls[0], []
    for is_checkpointing in (False, True):
        (denoiser.enable_gradient_checkpointing if is_checkpointing else denoiser.disable_gradient_checkpointing)()
        denoiser.zero_grad()
        denoiser.train()(*args, **kwargs)[0].square().sum().backward()
        gradients.append([weight.grad.clone() for weight in denoiser.parameters() if weight.grad is not None])
    assert gradients[0]
    assert all(close(*pair) for pair in zip(*gradients, strict=True))


def only_whole_blocks(name: str) -> tuple[Any, Any]:
    """Two pruned pipelines: with stand-ins for whole blocks, and with these taken out of their lists."""
    pipeline = FAMILIES[name].pipeline()
    whole = [removal for removal in PLANS[name] if removal.operator.count(".") == 1]
    kept, native = (copy.deepcopy(pipeline) for _ in range(2))
    for other in (kept, native):
        denoiser: Any = network(other)
        base: Any = type(denoiser)
        ldpruner.stand_ins.remove_(denoiser, [removal.model_dump() for removal in whole])
        denoiser.__class__ = adapting_class(base)
    denoiser = network(native)
    for list_name, blocks in list(denoiser.named_children()):
        if isinstance(blocks, nn.ModuleList):
            setattr(denoiser, list_name, nn.ModuleList(real(blocks)))
    return kept, native


def real(blocks: Iterable[nn.Module]) -> list[nn.Module]:
    return [block for block in blocks if not isinstance(block, StandIn)]


@pytest.mark.case(number=41)
@pytest.mark.parametrize(
    "config",
    [
        FirstBlockCacheConfig(threshold=100.0),
        MagCacheConfig(mag_ratios=[1.0, 1.0], threshold=10.0, retention_ratio=0.0, num_inference_steps=2),
    ],
    ids=["first-block", "mag"],
)
def test_a_cache_sees_only_the_blocks_that_are_left(config: Any) -> None:
    kept, native = only_whole_blocks("flux")
    exact = samples("flux", native)
    outputs = []
    for pipeline in (kept, native):
        lists = [list(blocks) for blocks in pipeline.transformer.children() if isinstance(blocks, nn.ModuleList)]
        pipeline.transformer.enable_cache(config)
        outputs.append(samples("flux", pipeline))
        pipeline.transformer.disable_cache()
        assert lists == [
            list(blocks) for blocks in pipeline.transformer.children() if isinstance(blocks, nn.ModuleList)
        ]
        assert torch.equal(samples("flux", pipeline), exact)
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], exact)  # the second step is cached


@pytest.mark.case(number=41)
@pytest.mark.parametrize("name", ["flux", "stable-diffusion-3"])
def test_cache_dit_works(name: str) -> None:
    smaller = pruned(name, FAMILIES[name].pipeline())
    expected = samples(name, smaller)
    config = cache_dit.DBCacheConfig(Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=0.0)
    cache_dit.enable_cache(smaller, cache_config=config)
    assert torch.equal(samples(name, smaller), expected)


@pytest.mark.case(number=41)
def test_skipping_a_block_that_is_gone_is_refused() -> None:
    transformer = only_whole_blocks("flux")[0].transformer
    with pytest.raises(ValueError, match=r"Identity\[FluxTransformerBlock\]'> not registered"):
        apply_layer_skip(transformer, LayerSkipConfig(indices=[1], fqn="transformer_blocks"))
