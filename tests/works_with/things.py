"""What people do with a pipeline. Each thing gets a copy of one, and returns its latents, or checks by itself."""

import copy
import functools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

import ldpruner
from ldpruner.exporting.export import export
from ldpruner.operators.patching import modified
from ldpruner.pipelines.denoiser import find_denoiser
from tests.families import FAMILIES
from tests.hub_server import in_place_of_the_hub
from tests.test_adapters import ip_adapter as weights_of_ip_adapter
from tests.works_with.trial import NAMES, DoesNotApply, Subject, WorksInPart, subject

SEEDED = {"num_inference_steps": 2, "output_type": "latent"}


def latents(pipeline: Any, **call: Any) -> Tensor:
    """The latents of one call with a seed of its own; arguments that the pipeline does not take are left out."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        result = pipeline(**SEEDED, generator=generator, return_dict=False, **call)[0]
    return (
        torch.as_tensor(result).float() if isinstance(result, Tensor) else torch.stack([*map(torch.as_tensor, result)])
    )


@contextmanager
def reference(tried: Subject) -> Iterator[Subject]:
    """The original with the same operators modified, as scoring modifies them; whole for a whole pipeline."""
    whole = subject(tried.name, is_pruned=False)
    removals = [planned.removal for planned in tried.plan.removed] if tried.is_pruned else []
    with modified(whole.network, removals):
        yield whole


def as_modified(tried: Subject, use: Callable[[Subject], Tensor]) -> None:
    """Raises AssertionError unless some use of a pipeline gives the same with the modified original."""
    actual = use(tried)
    with reference(tried) as other:
        expected = use(other)
    assert torch.isfinite(actual).all()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def switched(name: str, *arguments: Any, **options: Any) -> Callable[[Subject], Tensor]:
    """A thing that is one call of a method of the denoiser or of the pipeline."""

    def thing(tried: Subject) -> Tensor:
        tried.method(name)(*arguments, **options)
        return tried.sample()

    return thing


# Running


def compiled(tried: Subject) -> Tensor:
    torch.compiler.reset()
    tried.network.compile(fullgraph=True)
    return tried.sample()


def cast(dtype: torch.dtype) -> Callable[[Subject], Tensor]:
    return lambda tried: tried.sample(tried.pipeline.to(dtype))


def layerwise(tried: Subject) -> Tensor:
    tried.method("enable_layerwise_casting")(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    return tried.sample()


def processors(tried: Subject) -> Tensor:
    if "SD" not in tried.name[:2] or tried.name == "SD3":
        raise DoesNotApply("its attention has no general processor")
    tried.method("set_attn_processor")(AttnProcessor())
    return tried.sample()


def tiled(tried: Subject) -> Tensor:
    if not hasattr(getattr(tried.pipeline, "vae", None), "enable_tiling"):
        raise DoesNotApply("its autoencoder has no tiles")
    tried.pipeline.vae.enable_tiling()
    return tried.sample()


def free_u(tried: Subject) -> None:
    if not hasattr(tried.network, "enable_freeu"):
        raise DoesNotApply("for U-Nets only")

    def use(one: Subject) -> Tensor:
        one.network.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
        return one.sample()

    as_modified(tried, use)


def checkpointed(tried: Subject) -> Tensor:
    """Gradients with gradient checkpointing are those without."""
    found = []
    for is_on in (False, True):
        if is_on:
            tried.method("enable_gradient_checkpointing")()
        recorded = find_denoiser(tried.pipeline, tried.component, tried.family.call)
        network = tried.network.train()
        network.zero_grad()
        arguments, options = copy.deepcopy((recorded.arguments, recorded.options))
        torch.manual_seed(0)
        output = network(*arguments, **{**options, "return_dict": False})[0]
        output.square().mean().backward()
        found.append({name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-5) for name in found[0])
    tried.network.eval()
    return tried.sample()


# Caching


def cached(make: Callable[[Subject], Any]) -> Callable[[Subject], Tensor]:
    def thing(tried: Subject) -> Tensor:
        config = make(tried)
        tried.method("enable_cache")(config)
        result = tried.sample()
        tried.network.disable_cache()
        return result

    return thing


def timestep(tried: Subject) -> Callable[[], Any]:
    if not hasattr(type(tried.pipeline), "current_timestep"):
        raise DoesNotApply("the pipeline tells no timestep")
    return lambda: tried.pipeline.current_timestep


def first_block(_: Subject) -> Any:
    return diffusers.FirstBlockCacheConfig(threshold=0.5)


def broadcast(tried: Subject) -> Any:
    return diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        current_timestep_callback=timestep(tried),
    )


def faster(tried: Subject) -> Any:
    return diffusers.FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 901),  # the first step fills the cache
        unconditional_batch_skip_range=2,
        unconditional_batch_timestep_skip_range=(-1, 901),
        is_guidance_distilled=True,
        current_timestep_callback=timestep(tried),
    )


def taylor(_: Subject) -> Any:
    return diffusers.TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1, max_order=1)


def magnitude(_: Subject) -> Any:
    return diffusers.MagCacheConfig(mag_ratios=[1.0, 1.0], num_inference_steps=2, threshold=0.1)


def cache_dit(tried: Subject) -> Tensor:
    import cache_dit as package

    if not hasattr(tried.network, "enable_cache"):
        raise DoesNotApply("for transformers only")
    package.enable_cache(tried.pipeline, cache_config=package.DBCacheConfig(Fn_compute_blocks=1, Bn_compute_blocks=0))
    return tried.sample()


def deep_cache(tried: Subject) -> Tensor:
    from DeepCache import DeepCacheSDHelper

    if tried.name not in ("SD 1.x", "SDXL"):
        raise DoesNotApply("for Stable Diffusion 1, 2 and XL only")
    helper = DeepCacheSDHelper(pipe=tried.pipeline)
    helper.set_params(cache_interval=2, cache_branch_id=0)
    helper.enable()
    result = tried.sample()
    helper.disable()
    return result


def layer_skip(tried: Subject) -> None:
    from diffusers.hooks import LayerSkipConfig, apply_layer_skip

    lists = [name for name in ("transformer_blocks", "blocks") if hasattr(tried.network, name)]
    if not lists:
        raise DoesNotApply("for transformers only")

    def use(one: Subject) -> Tensor:
        apply_layer_skip(one.network, LayerSkipConfig(indices=[0], fqn=lists[0]))
        return one.sample()

    as_modified(tried, use)


# Adapters


def lora_of(whole: Subject, folder: Path) -> Path:
    """A LoRA with random weights for the attentions of the whole denoiser, saved as diffusers saves them."""
    import peft

    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)
    torch.manual_seed(1)
    whole.network.add_adapter(config)
    part = "transformer" if whole.component == "transformer" else "unet"
    if not hasattr(whole.pipeline, "save_lora_weights"):
        raise DoesNotApply("its pipeline loads no LoRA")
    layers = {f"{part}_lora_layers": peft.get_peft_model_state_dict(whole.network)}
    whole.pipeline.save_lora_weights(folder, **layers)
    return folder


def lora(tried: Subject, *, fused: bool = False) -> Tensor:
    """A LoRA of the original, on the pruned pipeline, does what it does on the original with operators modified."""
    plain = tried.sample()
    with tempfile.TemporaryDirectory() as folder:
        lora_of(subject(tried.name, is_pruned=False), Path(folder))
        tried.pipeline.load_lora_weights(folder)
        if fused:
            tried.pipeline.fuse_lora()
            tried.pipeline.unload_lora_weights()
        actual = tried.sample()
        whole = subject(tried.name, is_pruned=False)
        whole.pipeline.load_lora_weights(folder)
        whole.pipeline.fuse_lora()
        whole.pipeline.unload_lora_weights()
    removals = [planned.removal for planned in tried.plan.removed] if tried.is_pruned else []
    with modified(whole.network, removals):
        expected = whole.sample()
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert not torch.equal(actual, plain)
    if not fused:
        tried.pipeline.unload_lora_weights()
        return tried.sample()
    return plain


def lora_trained(tried: Subject) -> Tensor:
    """An adapter is trained, and nothing else is; saved and loaded again it gives the same."""
    import peft

    tried.network.requires_grad_(requires_grad=False)
    tried.method("add_adapter")(peft.LoraConfig(r=2, target_modules=["to_k", "to_v"]))
    trained = [weight for weight in tried.network.parameters() if weight.requires_grad]
    kept = {name: weight.clone() for name, weight in tried.network.named_parameters() if not weight.requires_grad}
    optimizer = torch.optim.SGD(trained, lr=10.0)
    recorded = find_denoiser(tried.pipeline, tried.component, tried.family.call)
    for _ in range(2):
        arguments, options = copy.deepcopy((recorded.arguments, recorded.options))
        tried.network(*arguments, **{**options, "return_dict": False})[0].square().mean().backward()
        optimizer.step()
    weights = dict(tried.network.named_parameters())
    assert all(torch.equal(kept[name], weights[name]) for name in kept)
    actual = tried.sample()
    with tempfile.TemporaryDirectory() as folder:
        tried.network.save_lora_adapter(folder, safe_serialization=True)
        tried.network.unload_lora()
        plain = tried.sample()
        tried.network.load_lora_adapter(folder, prefix=None, use_safetensors=True)
        assert torch.allclose(tried.sample(), actual, atol=1e-5)
    assert not torch.equal(actual, plain)
    return plain


def textual_inversion(tried: Subject) -> Tensor:
    if not hasattr(tried.pipeline, "load_textual_inversion"):
        raise DoesNotApply("its pipeline loads none")
    width = tried.pipeline.text_encoder.get_input_embeddings().weight.shape[1]
    options = {"tokenizer": tried.pipeline.tokenizer, "text_encoder": tried.pipeline.text_encoder}
    tried.pipeline.load_textual_inversion({"<style>": torch.ones(1, width)}, token="<style>", **options)
    return tried.sample()


def ip_adapter(tried: Subject) -> None:
    """It is loaded before the original is modified, and after the pruned one was pruned."""
    if tried.name not in ("SD 1.x", "SDXL"):
        raise DoesNotApply("no IP-Adapter in diffusers, or for Flux: tested on its own")
    whole = subject(tried.name, is_pruned=False)
    torch.manual_seed(2)
    weights = weights_of_ip_adapter(whole.network)
    sized = {key: value for key, value in tried.family.call.items() if key in ("height", "width")}
    found = []
    for one in (tried, whole):
        one.network._load_ip_adapter_weights([copy.deepcopy(weights)])
        removals = [planned.removal for planned in tried.plan.removed] if one is whole and tried.is_pruned else []
        with modified(one.network, removals):
            call = {"prompt": "a red cat", "ip_adapter_image_embeds": [torch.ones(2, 1, 16)], **sized}
            found.append(latents(one.pipeline, **call))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4 * float(found[1].abs().max()))
    assert (found[0] - tried.sample(subject(tried.name, is_pruned=tried.is_pruned).pipeline)).abs().max() > 0


# Other pipelines


def controlnet(tried: Subject) -> None:
    name = f"{NAMES[tried.name]}-controlnet"
    if name not in FAMILIES:
        raise DoesNotApply("no ControlNet pipeline")
    example = FAMILIES[name].pipeline()
    network: Any = example.components["controlnet"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for weight in network.parameters():  # new ones add zeros
            torch.nn.init.normal_(weight, std=0.02)

    def use(one: Subject) -> Tensor:
        parts = {key: one.pipeline.components.get(key, part) for key, part in example.components.items()}
        return FAMILIES[name].sample(type(example)(**{**parts, "controlnet": network}))

    if "_removed" in tried.network.config:
        assert torch.isfinite(use(tried)).all()
        raise WorksInPart("it adds nothing for blocks that are gone")
    as_modified(tried, use)


def from_pipe(kind: str, **call: Any) -> Callable[[Subject], None]:
    def thing(tried: Subject) -> None:
        auto = getattr(diffusers, f"AutoPipelineFor{kind}")
        try:
            auto.from_pipe(tried.pipeline)
        except ValueError as error:
            raise DoesNotApply("diffusers has no such pipeline for it") from error

        def use(one: Subject) -> Tensor:
            sized = {key: value for key, value in one.family.call.items() if key in ("height", "width")}
            return latents(auto.from_pipe(one.pipeline), prompt="a red cat", **{**sized, **call})

        as_modified(tried, use)

    return thing


PICTURE = torch.linspace(0, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
image_to_image = from_pipe("Image2Image", image=PICTURE, strength=1.0)
inpainting = from_pipe("Inpainting", image=PICTURE, mask_image=torch.ones(1, 1, 16, 16), strength=1.0)


def guided_by_attention(tried: Subject) -> None:
    if tried.name not in ("SD 1.x", "SDXL", "SD3", "PixArt"):
        raise DoesNotApply("diffusers has no such pipeline for it")
    layers = {"SD 1.x": "down", "SDXL": "down", "SD3": r"blocks\.0", "PixArt": r"blocks\.0"}[tried.name]

    def use(one: Subject) -> Tensor:
        pipeline = diffusers.AutoPipelineForText2Image.from_pipe(
            one.pipeline, enable_pag=True, pag_applied_layers=[layers]
        )
        sized = {key: value for key, value in one.family.call.items() if key != "output_type"}
        return latents(pipeline, prompt="a red cat", pag_scale=1.0, **sized)

    as_modified(tried, use)


def scheduler(tried: Subject) -> None:
    flow = "FlowMatch" in type(tried.pipeline.scheduler).__name__ or "shift" in tried.pipeline.scheduler.config
    new = diffusers.FlowMatchLCMScheduler if flow else diffusers.DPMSolverMultistepScheduler

    def use(one: Subject) -> Tensor:
        one.pipeline.scheduler = new.from_config(one.pipeline.scheduler.config)
        return one.sample()

    as_modified(tried, use)


# Loading and saving


def loaded(**options: Any) -> Callable[[Subject], Tensor]:
    """Saved, and loaded with options of `from_pretrained`."""

    def thing(tried: Subject) -> Tensor:
        with tried.saved() as folder:
            return tried.sample(opened(tried, folder, **options))

    return thing


def opened(tried: Subject, folder: Path, **options: Any) -> Any:
    """A saved pipeline: with ld-pruner if it is pruned, else with diffusers alone."""
    if tried.is_pruned:
        return ldpruner.load(folder, **options)
    return DiffusionPipeline.from_pretrained(folder, **options)


def saved_in_shards(tried: Subject) -> Tensor:
    with tried.saved(variant="fp16", max_shard_size="20KB") as folder:
        return tried.sample(opened(tried, folder, variant="fp16"))


def saved_directly(tried: Subject) -> Tensor:
    with tried.saved(safe_serialization=True) as folder:
        trusted = DiffusionPipeline.from_pretrained(folder, trust_remote_code=tried.is_pruned)
        assert torch.equal(tried.sample(trusted), tried.sample())
        return tried.sample(opened(tried, folder))


def pushed(tried: Subject) -> Tensor:
    """`push_to_hub` to a stand-in of the Hub, and opened from there by its name."""
    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
        in_place_of_the_hub(patch, Path(folder)),
    ):
        tried.pipeline.push_to_hub("somebody/small")
        return tried.sample(DiffusionPipeline.from_pretrained("somebody/small", trust_remote_code=tried.is_pruned))


def quantised(config: Callable[[], Any]) -> Callable[[Subject], Tensor]:
    """Quantised while the saved pipeline is loaded in bfloat16, by diffusers' `quantization_config`."""

    def thing(tried: Subject) -> Tensor:
        mapping = diffusers.quantizers.PipelineQuantizationConfig(quant_mapping={tried.component: config()})
        with tried.saved() as folder:
            return tried.sample(opened(tried, folder, quantization_config=mapping, torch_dtype=torch.bfloat16))

    return thing


def torchao(name: str) -> Any:
    import torchao.quantization

    return diffusers.TorchAoConfig(getattr(torchao.quantization, name)())


def four_bits(_: Subject) -> None:
    raise DoesNotApply("diffusers uses it on a GPU only")


def gguf(_: Subject) -> None:
    raise DoesNotApply("diffusers reads it by from_single_file")


def grouped(tried: Subject) -> Tensor:
    place = torch.device("cpu")
    tried.method("enable_group_offload")(
        onload_device=place, offload_device=place, offload_type="block_level", num_blocks_per_group=1
    )
    return tried.sample()


def exported(format_name: str) -> Callable[[Subject], None]:
    """Exported with ld-pruner, which compares a whole denoising run."""

    def thing(tried: Subject) -> None:
        with tempfile.TemporaryDirectory() as folder:
            call = dict(tried.family.call)
            export(tried.pipeline, Path(folder, "exported"), format_name, probe=ldpruner.Probe(steps=2, call=call))

    return thing


THINGS: dict[str, tuple[Callable[[Subject], Tensor | None], bool]] = {  # whether it is lossy
    "torch.compile, fullgraph": (compiled, False),
    "torch.export": (exported("torch-export"), False),
    "ONNX Runtime": (exported("onnx"), False),
    "OpenVINO": (exported("openvino"), False),
    "int8, weights only (torchao)": (quantised(functools.partial(torchao, "Int8WeightOnlyConfig")), True),
    "float8, weights only (torchao)": (quantised(functools.partial(torchao, "Float8WeightOnlyConfig")), True),
    "NF4 (bitsandbytes)": (four_bits, False),
    "GGUF": (gguf, False),
    "layerwise casting": (layerwise, True),
    "float16": (cast(torch.float16), True),
    "bfloat16": (cast(torch.bfloat16), True),
    "FirstBlockCache": (cached(first_block), True),
    "FasterCache": (cached(faster), True),
    "PAB": (cached(broadcast), True),
    "TaylorSeer": (cached(taylor), True),
    "MagCache": (cached(magnitude), True),
    "DeepCache": (deep_cache, True),
    "cache-dit": (cache_dit, True),
    "LayerSkip": (layer_skip, False),
    "LoRA of the original": (lora, False),
    "LoRA of the original, fused": (functools.partial(lora, fused=True), False),
    "LoRA, trained": (lora_trained, False),
    "textual inversion": (textual_inversion, False),
    "IP-Adapter": (ip_adapter, False),
    "ControlNet": (controlnet, False),
    "`from_pipe` to image to image": (image_to_image, False),
    "`from_pipe` to inpainting": (inpainting, False),
    "other schedulers": (scheduler, False),
    "PAG": (guided_by_attention, False),
    "attention slicing": (switched("enable_attention_slicing"), False),
    "attention processors": (processors, False),
    "VAE tiling": (tiled, False),
    "FreeU": (free_u, False),
    "fused QKV": (switched("fuse_qkv_projections"), False),
    "gradient checkpointing": (checkpointed, False),
    "group offload": (grouped, False),
    "model offload": (switched("enable_model_cpu_offload"), False),
    "sequential offload": (switched("enable_sequential_cpu_offload"), False),
    "`device_map`": (loaded(device_map="cpu"), False),
    "`low_cpu_mem_usage=False`": (loaded(low_cpu_mem_usage=False), False),
    "shards and variants": (saved_in_shards, False),
    "`save_pretrained` directly": (saved_directly, False),
    "`push_to_hub`": (pushed, False),
}
