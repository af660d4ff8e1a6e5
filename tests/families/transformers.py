"""Small pipelines whose denoiser is a transformer."""

from typing import Any

import diffusers
import torch
import transformers as texts
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from diffusers.pipelines.stable_audio import StableAudioProjectionModel

from tests.families.parts import WIDTH, WORDS, clip, decoder, images, picture, ready, t5, umt5, words

IMAGE = {"height": 16, "width": 16}
SHORT = {"max_sequence_length": 8}
FEW_FRAMES = {"num_frames": 5}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}  # a stream of 16
BLOCKS = {"num_layers": 2, **HEADS}


def states(seed: int) -> torch.Tensor:
    """Text embeddings for one prompt."""
    return torch.randn(1, 8, WIDTH, generator=torch.Generator().manual_seed(seed))


def flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler()


def assembled(pipeline: Any, transformer: Any, **parts: Any) -> Any:
    """A pipeline of a transformer; by default with a small image autoencoder, T5 and flow matching."""
    usual: dict[str, Any] = {"vae": images, "text_encoder": t5, "tokenizer": words, "scheduler": flow}
    missing = {name: build() for name, build in usual.items() if name not in parts}
    return pipeline(transformer=ready(transformer), **missing, **parts)


def dit() -> Any:
    transformer = diffusers.DiTTransformer2DModel(in_channels=4, out_channels=8, sample_size=8, **BLOCKS)
    return diffusers.DiTPipeline(transformer=ready(transformer), vae=images(), scheduler=diffusers.DDIMScheduler())


def pixart(pipeline: Any, sample_size: int) -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        in_channels=4,
        sample_size=sample_size,
        caption_channels=WIDTH,
        cross_attention_dim=24,
        **{**BLOCKS, "attention_head_dim": 12},
    )
    return assembled(pipeline, transformer, scheduler=diffusers.DPMSolverMultistepScheduler())


def pixart_alpha() -> Any:
    return pixart(diffusers.PixArtAlphaPipeline, sample_size=128)  # the size with further conditions


def pixart_sigma() -> Any:
    return pixart(diffusers.PixArtSigmaPipeline, sample_size=8)


SD3 = {
    **BLOCKS,
    "num_layers": 3,
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "joint_attention_dim": 2 * WIDTH,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 2 * WIDTH,
    "pos_embed_max_size": 8,
    "dual_attention_layers": (0,),
    "qk_norm": "rms_norm",
}


def stable_diffusion_3_parts() -> dict[str, Any]:
    encoders = {
        **{"text_encoder": clip(projected=True), "text_encoder_2": clip(projected=True)},
        **{"text_encoder_3": t5(2 * WIDTH), "tokenizer": words(), "tokenizer_2": words(), "tokenizer_3": words()},
    }
    transformer = ready(diffusers.SD3Transformer2DModel(**SD3))
    return {"transformer": transformer, "vae": images(shift_factor=0.1), "scheduler": flow(), **encoders}


def stable_diffusion_3() -> Any:
    return diffusers.StableDiffusion3Pipeline(**stable_diffusion_3_parts())


def flux_parts() -> dict[str, Any]:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_single_layers=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 2, 2),
        **BLOCKS,
    )
    encoders = {"text_encoder": clip(), "text_encoder_2": t5(), "tokenizer": words(), "tokenizer_2": words()}
    return {"transformer": ready(transformer), "vae": images(shift_factor=0.1), "scheduler": flow(), **encoders}


def flux() -> Any:
    return diffusers.FluxPipeline(**flux_parts())


def gemma() -> Any:
    return decoder(texts.Gemma2Config, texts.Gemma2Model)


def deep_images() -> Any:
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in DEEP.items()}
    return ready(diffusers.AutoencoderDC(latent_channels=4, attention_head_dim=2, **sides))


DEEP = {
    "block_types": ("ResBlock", "EfficientViTBlock"),
    "block_out_channels": (8, 8),
    "layers_per_block": (1, 1),
    "qkv_multiscales": ((), (5,)),
}


def sana() -> Any:
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=8,
        **BLOCKS,
    )
    return assembled(
        diffusers.SanaPipeline,
        transformer,
        vae=deep_images(),
        text_encoder=gemma(),
        scheduler=diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    )


def bert() -> Any:
    configuration = texts.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    return ready(texts.BertModel(configuration))


def hunyuan_dit() -> Any:
    transformer = diffusers.HunyuanDiT2DModel(
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=16,
        cross_attention_dim=WIDTH,
        cross_attention_dim_t5=WIDTH,
        pooled_projection_dim=8,
        use_style_cond_and_image_meta_size=False,
        **{**BLOCKS, "num_layers": 4},
    )
    return assembled(
        diffusers.HunyuanDiTPipeline,
        transformer,
        text_encoder=bert(),
        tokenizer=words(77),
        text_encoder_2=t5(),
        tokenizer_2=words(256),
        scheduler=diffusers.DDPMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_audio() -> Any:
    transformer = diffusers.StableAudioDiTModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_key_value_attention_heads=1,
        cross_attention_dim=WIDTH,
        cross_attention_input_dim=WIDTH,
        global_states_input_dim=2 * WIDTH,
        time_proj_dim=16,
        **BLOCKS,
    )
    vae = diffusers.AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 2],
        decoder_channels=8,
        decoder_input_channels=4,
        sampling_rate=16,
    )
    return assembled(
        diffusers.StableAudioPipeline,
        transformer,
        vae=ready(vae),
        projection_model=ready(StableAudioProjectionModel(WIDTH, WIDTH, 0, 32)),
        scheduler=diffusers.EDMDPMSolverMultistepScheduler(solver_order=2, prediction_type="v_prediction"),
    )


def wan_videos() -> Any:
    vae = diffusers.AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
        scale_factor_temporal=2,
        scale_factor_spatial=2,
    )
    return ready(vae)


def wan_transformer(**settings: Any) -> Any:
    sizes = {"in_channels": 4, "out_channels": 4, "text_dim": WIDTH, "freq_dim": 16, "ffn_dim": 32}
    return ready(
        diffusers.WanTransformer3DModel(**{**sizes, **BLOCKS, "num_layers": 3, "attention_head_dim": 12, **settings})
    )


def wan_parts(**settings: Any) -> dict[str, Any]:
    text = {"text_encoder": umt5(), "tokenizer": words()}
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    return {"transformer": wan_transformer(**settings), "vae": wan_videos(), "scheduler": scheduler, **text}


def wan() -> Any:
    return diffusers.WanPipeline(**wan_parts())


def wan_two_denoisers() -> Any:
    return diffusers.WanPipeline(**wan_parts(), transformer_2=wan_transformer(), boundary_ratio=0.9)


def ltx_videos() -> Any:
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
    )
    return ready(vae)


def ltx() -> Any:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, cross_attention_dim=16, caption_channels=WIDTH, **BLOCKS
    )
    return assembled(diffusers.LTXPipeline, transformer, vae=ltx_videos())


def cogvideox_parts(**settings: Any) -> dict[str, Any]:
    sizes: dict[str, Any] = {"in_channels": 4, "out_channels": 4, "sample_width": 4, "sample_height": 4}
    transformer = diffusers.CogVideoXTransformer3DModel(
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        max_text_seq_length=8,
        sample_frames=9,
        use_rotary_positional_embeddings=True,
        **{**sizes, **BLOCKS, "attention_head_dim": 16, **settings},
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8,) * 4, latent_channels=4, layers_per_block=1, norm_num_groups=4
    )
    text = {"text_encoder": t5(), "tokenizer": words()}
    scheduler = diffusers.CogVideoXDDIMScheduler()
    return {"transformer": ready(transformer), "vae": ready(vae), "scheduler": scheduler, **text}


def cogvideox() -> Any:
    return diffusers.CogVideoXPipeline(**cogvideox_parts())


def aura_flow() -> Any:
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pos_embed_max_size=16,
        **HEADS,
    )
    return assembled(diffusers.AuraFlowPipeline, transformer, text_encoder=umt5())


def flux_kontext() -> Any:
    return diffusers.FluxKontextPipeline(**flux_parts())


def flux_img2img() -> Any:
    return diffusers.FluxImg2ImgPipeline(**flux_parts())


def flux_controlnet() -> Any:
    parts = flux_parts()
    controlnet = diffusers.FluxControlNetModel.from_transformer(
        parts["transformer"], num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2
    )
    return diffusers.FluxControlNetPipeline(**parts, controlnet=ready(controlnet))


def stable_diffusion_3_controlnet() -> Any:
    controlnet = diffusers.SD3ControlNetModel(**{**SD3, "num_layers": 1})
    return diffusers.StableDiffusion3ControlNetPipeline(**stable_diffusion_3_parts(), controlnet=ready(controlnet))


def wan_image_to_video() -> Any:
    return diffusers.WanImageToVideoPipeline(**wan_parts(in_channels=4 + 4 + 2))  # latents, picture, its mask


def lumina2() -> Any:
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(64, 16, 16),
        cap_feat_dim=WIDTH,
    )
    return assembled(
        diffusers.Lumina2Pipeline, transformer, vae=images(shift_factor=0.1), text_encoder=gemma(), tokenizer=words(16)
    )


def chroma() -> Any:
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=16,
        num_single_layers=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 2, 2),
        approximator_num_channels=16,
        approximator_hidden_dim=16,
        approximator_layers=2,
        **BLOCKS,
    )
    return assembled(diffusers.ChromaPipeline, transformer, vae=images(shift_factor=0.1))


def qwen() -> Any:
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH}
    text = {"vocab_size": len(WORDS), "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    vision = {"depth": 1, "num_heads": 2, "out_hidden_size": WIDTH}
    rotation = {"type": "mrope", "mrope_section": [1, 1, 2]}
    configuration = texts.Qwen2_5_VLConfig(
        text_config={**sizes, **text, "rope_scaling": rotation}, vision_config={**sizes, **vision}
    )
    return ready(texts.Qwen2_5_VLForConditionalGeneration(configuration))


def qwen_image() -> Any:
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, joint_attention_dim=WIDTH, axes_dims_rope=(4, 2, 2), **BLOCKS
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return assembled(
        diffusers.QwenImagePipeline, transformer, vae=ready(vae), text_encoder=qwen(), tokenizer=words(64)
    )


def hunyuan_videos() -> Any:
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    return ready(vae)


def hunyuan_video() -> Any:
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        rope_axes_dim=(4, 2, 2),
        **BLOCKS,
    )
    return assembled(
        diffusers.HunyuanVideoPipeline,
        transformer,
        vae=hunyuan_videos(),
        text_encoder=decoder(texts.LlamaConfig, texts.LlamaModel),
        text_encoder_2=clip(length=77),
        tokenizer_2=words(77),
    )


def mochi() -> Any:
    transformer = diffusers.MochiTransformer3DModel(
        text_embed_dim=WIDTH, pooled_projection_dim=8, time_embed_dim=8, max_sequence_length=8, **BLOCKS
    )
    vae = diffusers.AutoencoderKLMochi(
        encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5
    )
    return assembled(diffusers.MochiPipeline, transformer, vae=ready(vae))


def cogview4() -> Any:
    transformer = diffusers.CogView4Transformer2DModel(
        in_channels=4, out_channels=4, sample_size=8, text_embed_dim=WIDTH, time_embed_dim=8, condition_dim=4, **BLOCKS
    )
    return assembled(
        diffusers.CogView4Pipeline,
        transformer,
        text_encoder=decoder(texts.GlmConfig, texts.GlmModel),
        tokenizer=words(16),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


def cogview3() -> Any:
    transformer = diffusers.CogView3PlusTransformer2DModel(
        in_channels=4,
        out_channels=4,
        sample_size=8,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=8,
        **BLOCKS,
    )
    return assembled(diffusers.CogView3PlusPipeline, transformer, scheduler=diffusers.CogVideoXDDIMScheduler())


def allegro() -> Any:
    transformer = diffusers.AllegroTransformer3DModel(
        cross_attention_dim=48,
        sample_height=4,
        sample_width=4,
        sample_frames=2,
        caption_channels=WIDTH,
        **{**BLOCKS, "attention_head_dim": 24},
    )
    vae = diffusers.AutoencoderKLAllegro(block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4)
    return assembled(
        diffusers.AllegroPipeline, transformer, vae=ready(vae), scheduler=diffusers.EulerAncestralDiscreteScheduler()
    )


def latte() -> Any:
    transformer = diffusers.LatteTransformer3DModel(
        in_channels=4,
        out_channels=8,
        patch_size=2,
        sample_size=8,
        video_length=2,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        activation_fn="gelu-approximate",
        attention_bias=True,
        **BLOCKS,
    )
    return assembled(diffusers.LattePipeline, transformer, scheduler=diffusers.DDIMScheduler())


def amused() -> Any:
    transformer = diffusers.UVit2DModel(
        hidden_size=16,
        cond_embed_dim=WIDTH,
        micro_cond_encode_dim=2,
        micro_cond_embed_dim=10,
        encoder_hidden_size=WIDTH,
        vocab_size=20,
        codebook_size=16,
        in_channels=16,
        block_out_channels=16,
        num_res_blocks=1,
        block_num_heads=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        sample_size=8,
    )
    vae = diffusers.VQModel(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        num_vq_embeddings=16,
        norm_num_groups=4,
    )
    return diffusers.AmusedPipeline(
        transformer=ready(transformer),
        tokenizer=words(),
        vqvae=ready(vae),
        text_encoder=clip(projected=True),
        scheduler=diffusers.AmusedScheduler(mask_token_id=19),
    )


def kandinsky5() -> Any:
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_text_dim=WIDTH,
        in_text_dim2=WIDTH,
        time_dim=8,
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 2, 2),
    )
    return assembled(
        diffusers.Kandinsky5T2VPipeline,
        transformer,
        vae=hunyuan_videos(),
        text_encoder=qwen(),
        tokenizer=words(256),
        text_encoder_2=clip(length=77),
        tokenizer_2=words(77),
    )


def chatting(tokenizer: Any) -> Any:
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    return tokenizer


def z_image() -> Any:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=64,  # as the time embedding is large whatever the width
        n_layers=3,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[16, 8, 8],
        axes_lens=[64, 16, 16],
    )
    return assembled(
        diffusers.ZImagePipeline,
        transformer,
        vae=images(shift_factor=0.1),
        text_encoder=decoder(texts.Qwen3Config, texts.Qwen3Model),
        tokenizer=chatting(words()),
    )


def ltx2() -> Any:
    audio = {"audio_num_attention_heads": 2, "audio_attention_head_dim": 8, "audio_cross_attention_dim": 16}
    transformer = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        audio_in_channels=8,
        audio_out_channels=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        **BLOCKS,
        **audio,
    )
    connectors = LTX2TextConnectors(
        caption_channels=WIDTH,
        text_proj_in_factor=3,
        **{f"{side}_connector_num_attention_heads": 2 for side in ("video", "audio")},
        **{f"{side}_connector_attention_head_dim": 8 for side in ("video", "audio")},
        **{f"{side}_connector_num_layers": 1 for side in ("video", "audio")},
        **{f"{side}_connector_num_learnable_registers": 8 for side in ("video", "audio")},
    )
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 3,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 4,
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )
    audio_vae = diffusers.AutoencoderKLLTX2Audio(base_channels=8, num_res_blocks=1, latent_channels=4, mel_bins=8)
    vocoder = LTX2Vocoder(in_channels=16, hidden_channels=32, upsample_kernel_sizes=[4], upsample_factors=[2])
    return assembled(
        diffusers.LTX2Pipeline,
        transformer,
        vae=ready(vae),
        audio_vae=ready(audio_vae),
        vocoder=ready(vocoder),
        connectors=ready(connectors),
        text_encoder=gemma(),
    )


def flux2_klein() -> Any:
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_single_layers=2,
        joint_attention_dim=3 * WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=False,
        **BLOCKS,
    )
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    return assembled(
        diffusers.Flux2KleinPipeline,
        transformer,
        vae=ready(vae),
        text_encoder=decoder(texts.Qwen3Config, texts.Qwen3ForCausalLM),
        tokenizer=chatting(words()),
    )


def wan_vace() -> Any:
    sizes = {"in_channels": 4, "out_channels": 4, "text_dim": WIDTH, "freq_dim": 16, "ffn_dim": 32}
    places = {"vace_layers": [0], "vace_in_channels": 4 + 4 + 4}
    transformer = diffusers.WanVACETransformer3DModel(**sizes, **places, **{**BLOCKS, "attention_head_dim": 12})
    return diffusers.WanVACEPipeline(**{**wan_parts(), "transformer": ready(transformer)})


def sana_video() -> Any:
    transformer = diffusers.SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=WIDTH,
        sample_size=8,
        **{**BLOCKS, "attention_head_dim": 12},
    )
    return assembled(
        diffusers.SanaVideoPipeline,
        transformer,
        vae=wan_videos(),
        text_encoder=gemma(),
        scheduler=diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    )


def lumina() -> Any:
    transformer = diffusers.LuminaNextDiT2DModel(
        sample_size=8,
        hidden_size=16,
        num_layers=2,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        cross_attention_dim=WIDTH,
    )
    return assembled(diffusers.LuminaPipeline, transformer, text_encoder=gemma())


def cogvideox_image_to_video() -> Any:
    return diffusers.CogVideoXImageToVideoPipeline(**cogvideox_parts(in_channels=8))


def ltx_image_to_video() -> Any:
    return diffusers.LTXImageToVideoPipeline(**ltx().components)


TEMPLATE = {"template": "the {}", "crop_start": 1}
# In place of prompts, as cleaning these needs ftfy.
STATES = {"prompt": None, "prompt_embeds": states(1), "negative_prompt_embeds": states(2)}
PLAIN = {"use_resolution_binning": False, "clean_caption": False}
LTX = {"height": 64, "width": 64, "num_frames": 9, **SHORT}
COG = {"height": 32, "width": 32, "num_frames": 9, **SHORT}
VIDEO = {"height": 32, "width": 32, "num_frames": 5}

# name: (build, further arguments of the call, component)
FAMILIES: dict[str, tuple[Any, ...]] = {
    "dit": (dit,),
    "pixart-alpha": (pixart_alpha, {**IMAGE, **SHORT, **PLAIN}),
    "pixart-sigma": (pixart_sigma, {**IMAGE, **SHORT, **PLAIN}),
    "stable-diffusion-3": (stable_diffusion_3, {**IMAGE, **SHORT}),
    "flux": (flux, {**IMAGE, **SHORT}),
    "sana": (
        sana,
        {"height": 32, "width": 32, **SHORT, "use_resolution_binning": False, "complex_human_instruction": None},
    ),
    "hunyuan-dit": (hunyuan_dit, {**IMAGE, "use_resolution_binning": False}),
    "stable-audio": (stable_audio,),
    "wan": (wan, {**IMAGE, **FEW_FRAMES, **SHORT}),
    "wan-two-denoisers": (wan_two_denoisers, {**IMAGE, **FEW_FRAMES, **SHORT}, "transformer"),
    "wan-two-denoisers-2": (wan_two_denoisers, {**IMAGE, **FEW_FRAMES, **SHORT}, "transformer_2"),
    "ltx": (ltx, LTX),
    "cogvideox": (cogvideox, COG),
    "aura-flow": (aura_flow, {**IMAGE, **SHORT}),
    "flux-kontext": (flux_kontext, {**IMAGE, **SHORT, "image": picture(), "max_area": 256, "_auto_resize": False}),
    "flux-img2img": (flux_img2img, {**IMAGE, **SHORT, "image": picture(), "strength": 1.0}),
    "wan-image-to-video": (wan_image_to_video, {**IMAGE, **FEW_FRAMES, **STATES, "image": picture()}),
    "lumina2": (lumina2, {"height": 64, "width": 64, "max_sequence_length": 16, "system_prompt": "a"}),
    "chroma": (chroma, {**IMAGE, **SHORT}),
    "qwen-image": (qwen_image, {**IMAGE, "negative_prompt": "a"}),
    "hunyuan-video": (hunyuan_video, {**VIDEO, **SHORT, "prompt_template": TEMPLATE}),
    "mochi": (mochi, {"height": 32, "width": 32, "num_frames": 7, **SHORT}),
    "cogview4": (cogview4, {**IMAGE, "max_sequence_length": 16, "negative_prompt": "a"}),
    "cogview3": (cogview3, {**IMAGE, **SHORT}),
    "allegro": (allegro, {"height": 32, "width": 32, "num_frames": 8, **SHORT, "clean_caption": False}),
    "latte": (latte, {**IMAGE, "video_length": 2, "clean_caption": False, "mask_feature": False}),
    "amused": (amused, IMAGE),
    "kandinsky5": (kandinsky5, VIDEO),
    "z-image": (z_image, {**IMAGE, **SHORT}),
    "stable-diffusion-3-controlnet": (stable_diffusion_3_controlnet, {**IMAGE, **SHORT, "control_image": picture()}),
    "flux-controlnet": (flux_controlnet, {**IMAGE, **SHORT, "control_image": picture()}),
    "ltx2": (ltx2, {**LTX, "spatio_temporal_guidance_blocks": [0]}),
    "flux2-klein": (flux2_klein, {**IMAGE, **SHORT, "text_encoder_out_layers": [0, 1, 2]}),
    "wan-vace": (wan_vace, {**IMAGE, **FEW_FRAMES, **STATES}),
    "sana-video": (
        sana_video,
        {"height": 32, "width": 32, **SHORT, **PLAIN, "frames": 5, "complex_human_instruction": None},
    ),
    "lumina": (lumina, {"height": 64, "width": 64, **SHORT, "clean_caption": False, "negative_prompt": "a"}),
    "cogvideox-image-to-video": (cogvideox_image_to_video, {**COG, "image": picture(32)}),
    "ltx-image-to-video": (ltx_image_to_video, {**LTX, "image": picture(64)}),
}
