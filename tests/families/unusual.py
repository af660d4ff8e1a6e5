"""Small pipelines that could once not be pruned, each for a reason of its own."""

from typing import Any

import diffusers
import torch
import transformers as texts
from diffusers.guiders import AdaptiveProjectedMixGuidance, ClassifierFreeGuidance

from tests.families import transformers, unets
from tests.families.parts import WIDTH, WORDS, picture, ready, t5, umt5, words
from tests.families.transformers import BLOCKS, FEW_FRAMES, HEADS, IMAGE, SHORT, assembled, states


def bria() -> Any:
    """Asks for the type of its scheduler."""
    transformer = diffusers.BriaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_single_layers=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=None,
        axes_dims_rope=[0, 4, 4],
        **BLOCKS,
    )
    return assembled(diffusers.BriaPipeline, transformer)


def hunyuan_dit_controlnet() -> Any:
    """Its denoiser pops from a list among its arguments."""
    pipeline = transformers.hunyuan_dit()
    controlnet = diffusers.HunyuanDiT2DControlNetModel(
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=16,
        cross_attention_dim=WIDTH,
        cross_attention_dim_t5=WIDTH,
        pooled_projection_dim=8,
        use_style_cond_and_image_meta_size=False,
        transformer_num_layers=4,
        **HEADS,
    )
    parts = {name: part for name, part in pipeline.components.items() if part is not None}
    return diffusers.HunyuanDiTControlNetPipeline(
        **parts,
        controlnet=ready(controlnet),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def hunyuan_image() -> Any:
    """Its denoiser looks for the tokens that a mask selects."""
    transformer = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=(1, 1),
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH,
        rope_axes_dim=(4, 4),
        **BLOCKS,
    )
    vae = diffusers.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        scaling_factor=0.5,
        spatial_compression_ratio=2,
        sample_size=16,
    )
    return assembled(
        diffusers.HunyuanImagePipeline,
        transformer,
        vae=ready(vae),
        text_encoder=transformers.qwen(),
        text_encoder_2=t5(),
        tokenizer_2=texts.ByT5Tokenizer(),
        guider=AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=1),
        ocr_guider=AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=1),
    )


def hunyuan_video_15() -> Any:
    """Its denoiser looks for the tokens that a mask selects, and its guidance is an object with a state."""
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH,
        image_embed_dim=12,
        rope_axes_dim=(2, 2, 4),
        target_size=16,
        task_type="t2v",
        **BLOCKS,
    )
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    rotation = {"rope_type": "default", "type": "default", "mrope_section": [1, 1, 2]}
    text_encoder = texts.Qwen2_5_VLTextModel(
        texts.Qwen2_5_VLTextConfig(
            vocab_size=len(WORDS),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            rope_scaling=rotation,
        )
    )
    return assembled(
        diffusers.HunyuanVideo15Pipeline,
        transformer,
        vae=ready(vae),
        text_encoder=ready(text_encoder),
        text_encoder_2=t5(),
        tokenizer_2=texts.ByT5Tokenizer(),
        guider=ClassifierFreeGuidance(guidance_scale=2.0),
    )


def krea_2() -> Any:
    """An entry of its model_index.json is a list of two numbers."""
    transformer = diffusers.Krea2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=8,
        text_hidden_dim=WIDTH,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
        rope_theta=1000.0,
    )
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH}
    text = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    vision = {"depth": 1, "num_heads": 2, "out_hidden_size": WIDTH}
    configuration = texts.Qwen3VLConfig(
        text_config={**sizes, **text, "vocab_size": len(WORDS)}, vision_config={**sizes, **vision}
    )
    return assembled(
        diffusers.Krea2Pipeline,
        transformer,
        vae=transformers.qwen_image().vae,
        text_encoder=ready(texts.Qwen3VLModel(configuration)),
        tokenizer=words(64),
        text_encoder_select_layers=(0, 1),
    )


def longcat_audio() -> Any:
    """It makes its scheduler itself, and its latents are one-dimensional."""
    transformer = diffusers.LongCatAudioDiTTransformer(
        dit_dim=16, dit_depth=2, dit_heads=2, dit_text_dim=WIDTH, latent_dim=8, text_conv=False
    )
    vae = diffusers.LongCatAudioDiTVae(
        in_channels=1,
        channels=16,
        c_mults=[1, 2],
        strides=[2],
        latent_dim=8,
        encoder_latent_dim=16,
        downsampling_ratio=2,
        sample_rate=24000,
    )
    return diffusers.LongCatAudioDiTPipeline(
        transformer=ready(transformer), vae=ready(vae), text_encoder=umt5(), tokenizer=words()
    )


def any_flow() -> Any:
    """Its denoiser uses FlexAttention."""
    transformer = diffusers.AnyFlowFARTransformer3DModel(
        patch_size=(1, 2, 2),
        in_channels=4,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=16,
        ffn_dim=32,
        cross_attn_norm=True,
        rope_max_seq_len=32,
        gate_value=0.25,
        deltatime_type="r",
        **{**BLOCKS, "attention_head_dim": 12},
    )
    return assembled(
        diffusers.AnyFlowFARPipeline,
        transformer,
        vae=transformers.wan_videos(),
        text_encoder=umt5(),
        scheduler=diffusers.FlowMapEulerDiscreteScheduler(shift=5.0),
    )


def kandinsky_img2img() -> Any:
    """Its image and its embeddings belong to samples, and it takes a single image."""
    pipeline = unets.kandinsky()
    return diffusers.KandinskyV22Img2ImgPipeline(
        unet=pipeline.unet, movq=pipeline.movq, scheduler=diffusers.DDIMScheduler()
    )


def masked(prefix: str, suffix: str, seed: int) -> dict[str, Any]:
    """Embeddings of a prompt and their mask, which selects all tokens but the last."""
    mask = torch.ones(1, 8, dtype=torch.int64)
    mask[:, -1] = 0
    return {f"{prefix}_embeds{suffix}": states(seed), f"{prefix}_embeds_mask{suffix}": mask}


BOTH = {
    "prompt": None,
    **{**masked("prompt", "", 1), **masked("prompt", "_2", 2)},
    **{**masked("negative_prompt", "", 3), **masked("negative_prompt", "_2", 4)},
}
STATES = torch.linspace(-1, 1, 2 * WIDTH).view(2, WIDTH)
EMBEDDINGS = {"image_embeds": STATES, "negative_image_embeds": -STATES}

# name: (build, further arguments of the call, component)
FAMILIES: dict[str, tuple[Any, ...]] = {
    "bria": (bria, {**IMAGE, **SHORT}),
    "hunyuan-dit-controlnet": (
        hunyuan_dit_controlnet,
        {**IMAGE, "control_image": picture(), "use_resolution_binning": False},
    ),
    "hunyuan-image": (hunyuan_image, {**IMAGE, **BOTH}),
    "hunyuan-video-1.5": (hunyuan_video_15, {**IMAGE, **FEW_FRAMES, **BOTH}),
    "krea-2": (krea_2, {**IMAGE, **SHORT, "negative_prompt": "a"}),
    "longcat-audio": (longcat_audio, {"audio_duration_s": 0.001}),
    "any-flow": (any_flow, {**IMAGE, **FEW_FRAMES, **SHORT, "chunk_partition": [1, 2]}),
    "kandinsky-2.2-img2img": (
        kandinsky_img2img,
        {"image": [picture(), picture()], **EMBEDDINGS, "strength": 1.0, **IMAGE},
    ),
}
