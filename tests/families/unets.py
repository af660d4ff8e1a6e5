"""Small pipelines whose denoiser is a U-Net."""

from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from PIL import Image

from tests.families.parts import WORDS, clip, images, letters, ready, t5, vision, words

WIDTH = 16
SIZE = {"height": 16, "width": 16}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
PIXELS = torch.linspace(-1, 1, 3 * 8 * 8).view(1, 3, 8, 8)
EMBEDDING = torch.linspace(-1, 1, WIDTH)[None]
BOTH = {"prior_num_inference_steps": 2, **SIZE}
MASK = Image.new("L", (16, 16), 255)


def unet(**settings: Any) -> Any:
    """A U-Net of two levels with attention at the first."""
    defaults: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": WIDTH,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
    }
    return ready(UNet2DConditionModel(**{**defaults, **settings}))


def plain_unet(channels: int = 3, **settings: Any) -> Any:
    """A U-Net that takes no text, with attention at the second level."""
    defaults: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": 8,
    }
    return ready(diffusers.UNet2DModel(**{**defaults, **settings}))


def schedule(scheduler_class: Any = DDIMScheduler, **settings: Any) -> Any:
    """A scheduler as Stable Diffusion sets it."""
    defaults = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    defaults |= {"clip_sample": False} if scheduler_class is DDIMScheduler else {}
    return scheduler_class(**{**defaults, "steps_offset": 1, **settings})


def stable(pipeline_class: Any = StableDiffusionPipeline, **parts: Any) -> Any:
    """A pipeline with the parts of Stable Diffusion."""
    defaults: dict[str, Any] = {
        "vae": images(),
        "text_encoder": clip(),
        "tokenizer": words(),
        "scheduler": schedule(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    return pipeline_class(**{**defaults, "unet": unet() if "unet" not in parts else None, **parts})


def stable_diffusion_2() -> Any:
    return stable(
        unet=unet(attention_head_dim=[2, 4], use_linear_projection=True),
        scheduler=schedule(prediction_type="v_prediction"),
    )


def stable_diffusion_euler() -> Any:
    return stable(scheduler=schedule(diffusers.EulerDiscreteScheduler))


def stable_diffusion_dpm() -> Any:
    return stable(scheduler=schedule(diffusers.DPMSolverMultistepScheduler))


def stable_diffusion_pndm() -> Any:
    return stable(scheduler=schedule(diffusers.PNDMScheduler, skip_prk_steps=True))


def controlnet() -> Any:
    network = unet()
    control = diffusers.ControlNetModel.from_unet(network, conditioning_embedding_out_channels=(4, 8))
    return stable(diffusers.StableDiffusionControlNetPipeline, unet=network, controlnet=ready(control))


def img2img() -> Any:
    return stable(diffusers.StableDiffusionImg2ImgPipeline)


def inpaint() -> Any:
    return stable(diffusers.StableDiffusionInpaintPipeline, unet=unet(in_channels=9))


def instruct() -> Any:
    return stable(diffusers.StableDiffusionInstructPix2PixPipeline, unet=unet(in_channels=8))


def latent_consistency() -> Any:
    return stable(
        diffusers.LatentConsistencyModelPipeline,
        unet=unet(time_cond_proj_dim=8),
        scheduler=diffusers.LCMScheduler(original_inference_steps=10),
    )


def xl(pipeline_class: Any = diffusers.StableDiffusionXLPipeline, **parts: Any) -> Any:
    """A pipeline with the parts of Stable Diffusion XL."""
    sizes, pooled = 6 * 8, WIDTH
    defaults: dict[str, Any] = {
        "vae": images(),
        "text_encoder": clip(),
        "text_encoder_2": clip(projected=True),
        "tokenizer": words(),
        "tokenizer_2": words(),
        "unet": unet(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            cross_attention_dim=2 * WIDTH,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=sizes + pooled,
        ),
        "scheduler": schedule(diffusers.EulerDiscreteScheduler),
    }
    return pipeline_class(**{**defaults, **parts})


def xl_img2img() -> Any:
    return xl(diffusers.StableDiffusionXLImg2ImgPipeline)


def xl_inpaint() -> Any:
    return xl(diffusers.StableDiffusionXLInpaintPipeline)


def quantised(channels: int = 3) -> Any:
    """An autoencoder of images with a codebook."""
    return ready(
        diffusers.VQModel(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=channels,
            num_vq_embeddings=16,
            norm_num_groups=4,
        )
    )


def ldm() -> Any:
    return diffusers.LDMPipeline(vqvae=quantised(), unet=plain_unet(), scheduler=schedule())


def audio_diffusion() -> Any:
    return diffusers.AudioDiffusionPipeline(
        vqvae=images(channels=1, in_channels=1, out_channels=1),
        unet=plain_unet(1),
        mel=diffusers.Mel(x_res=16, y_res=16),
        scheduler=DDIMScheduler(),
    )


def ddpm() -> Any:
    return diffusers.DDPMPipeline(unet=plain_unet(), scheduler=diffusers.DDPMScheduler())


def basic(pipeline_class: Any, **parts: Any) -> Any:
    """A pipeline with the parts of Stable Diffusion, but no safety checker."""
    defaults = {"vae": images(), "text_encoder": clip(), "tokenizer": words(), "scheduler": schedule()}
    return pipeline_class(**{**defaults, **parts})


def motion() -> Any:
    """The motion modules that AnimateDiff adds to a U-Net."""
    return diffusers.MotionAdapter(
        block_out_channels=(16, 32),
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=4,
        motion_max_seq_length=4,
    )


def animatediff() -> Any:
    pipeline = basic(diffusers.AnimateDiffPipeline, unet=unet(), motion_adapter=motion())
    ready(pipeline.unet)
    return pipeline


def pia() -> Any:
    pipeline = basic(diffusers.PIAPipeline, unet=unet(in_channels=9), motion_adapter=motion())
    ready(pipeline.unet)
    return pipeline


def videos(network_class: Any, **settings: Any) -> Any:
    """A U-Net of videos."""
    network = network_class(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
        **settings,
    )
    return ready(network)


def text_to_video() -> Any:
    return basic(diffusers.TextToVideoSDPipeline, unet=videos(diffusers.UNet3DConditionModel))


def stable_video() -> Any:
    network = diffusers.UNetSpatioTemporalConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=WIDTH,
        num_attention_heads=(2, 4),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=3 * 8,
    )
    frames = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2
    )
    return diffusers.StableVideoDiffusionPipeline(
        vae=ready(frames),
        image_encoder=vision(224),
        unet=ready(network),
        scheduler=diffusers.EulerDiscreteScheduler(prediction_type="v_prediction", use_karras_sigmas=True),
        feature_extractor=transformers.CLIPImageProcessor(),
    )


def clap() -> Any:
    """A network of texts and sounds, of few layers."""
    text = transformers.ClapTextConfig(
        vocab_size=32,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        projection_dim=WIDTH,
    )
    sound = transformers.ClapAudioConfig(
        window_size=2,
        num_mel_bins=8,
        spec_size=32,
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        depths=[1, 1],
        num_attention_heads=[1, 2],
        patch_embeds_hidden_size=8,
        num_hidden_layers=2,
    )
    settings = transformers.ClapConfig(text_config=text, audio_config=sound, projection_dim=WIDTH)
    return ready(transformers.ClapModel(settings))


def vocoder() -> Any:
    """A vocoder for spectrograms of eight bands."""
    settings = transformers.SpeechT5HifiGanConfig(
        model_in_dim=8,
        sampling_rate=160,
        upsample_initial_channel=8,
        upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1]],
    )
    return ready(transformers.SpeechT5HifiGan(settings))


def audioldm() -> Any:
    network = unet(
        cross_attention_dim=(16, 32),
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=WIDTH,
        class_embeddings_concat=True,
    )
    settings = clap().config.text_config
    return diffusers.AudioLDMPipeline(
        vae=images(in_channels=1, out_channels=1),
        text_encoder=ready(transformers.ClapTextModelWithProjection(settings)),
        tokenizer=letters(transformers.RobertaTokenizer),
        unet=network,
        scheduler=schedule(),
        vocoder=vocoder(),
    )


def audioldm2() -> Any:
    network = diffusers.AudioLDM2UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=([None, WIDTH, WIDTH], [None, WIDTH, WIDTH]),
        attention_head_dim=2,
        norm_num_groups=4,
    )
    language = transformers.GPT2Config(
        vocab_size=8, n_positions=32, n_embd=WIDTH, n_layer=1, n_head=2, max_new_tokens=8
    )
    return diffusers.AudioLDM2Pipeline(
        vae=images(in_channels=1, out_channels=1),
        text_encoder=clap(),
        text_encoder_2=t5(vocabulary=32),
        projection_model=ready(diffusers.AudioLDM2ProjectionModel(WIDTH, WIDTH, WIDTH)),
        language_model=ready(transformers.GPT2LMHeadModel(language)),
        tokenizer=letters(transformers.RobertaTokenizer),
        tokenizer_2=letters(transformers.T5Tokenizer),
        feature_extractor=transformers.ClapFeatureExtractor(feature_size=8, sampling_rate=160),
        unet=ready(network),
        scheduler=schedule(),
        vocoder=vocoder(),
    )


def ldm_text() -> Any:
    settings = LDMBertConfig(
        vocab_size=len(WORDS),
        max_position_embeddings=77,
        encoder_layers=1,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        head_dim=8,
        d_model=WIDTH,
    )
    return diffusers.LDMTextToImagePipeline(
        vqvae=images(), bert=ready(LDMBertModel(settings)), tokenizer=words(77), unet=unet(), scheduler=schedule()
    )


def latent_upscaler() -> Any:
    network = unet(
        in_channels=8,
        out_channels=5,
        block_out_channels=(32, 64),
        down_block_types=("KCrossAttnDownBlock2D", "KDownBlock2D"),
        mid_block_type=None,
        up_block_types=("KUpBlock2D", "KCrossAttnUpBlock2D"),
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        timestep_post_act="gelu",
        time_cond_proj_dim=128 + WIDTH,
        conv_in_kernel=1,
        conv_out_kernel=1,
        only_cross_attention=False,
        act_fn="gelu",
        attention_head_dim=8,
    )
    return basic(
        diffusers.StableDiffusionLatentUpscalePipeline,
        unet=network,
        scheduler=diffusers.EulerDiscreteScheduler(prediction_type="sample"),
    )


def upscaler() -> Any:
    return basic(
        diffusers.StableDiffusionUpscalePipeline,
        unet=unet(in_channels=7, num_class_embeds=1000),
        low_res_scheduler=diffusers.DDPMScheduler(),
    )


def kandinsky() -> Any:
    network = unet(
        out_channels=8,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="image",
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="image_proj",
        attention_head_dim=8,
    )
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range")
    return diffusers.KandinskyV22Pipeline(unet=network, scheduler=scheduler, movq=quantised(4))


def kandinsky_combined() -> Any:
    pipeline, scheduler = kandinsky(), diffusers.UnCLIPScheduler(prediction_type="sample", num_train_timesteps=10)
    prior = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, embedding_dim=WIDTH, num_embeddings=8
    )
    return diffusers.KandinskyV22CombinedPipeline(
        **pipeline.components,
        prior_prior=ready(prior),
        prior_image_encoder=vision(),
        prior_text_encoder=clip(projected=True),
        prior_tokenizer=words(),
        prior_scheduler=scheduler,
        prior_image_processor=transformers.CLIPImageProcessor(crop_size=16, size=16),
    )


def cascade() -> Any:
    network = diffusers.StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        timestep_ratio_embedding_dim=8,
        conditioning_dim=WIDTH,
        block_out_channels=(16, 16),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        clip_text_in_channels=WIDTH,
        clip_text_pooled_in_channels=WIDTH,
        clip_image_in_channels=WIDTH,
        dropout=(0.0, 0.0),
        switch_level=(False,),
    )
    return diffusers.StableCascadePriorPipeline(
        tokenizer=words(),
        text_encoder=clip(projected=True),
        prior=ready(network),
        scheduler=diffusers.DDPMWuerstchenScheduler(),
    )


def dance() -> Any:
    network = diffusers.UNet1DModel(
        sample_size=64,
        sample_rate=64,
        in_channels=2,
        out_channels=2,
        extra_in_channels=64,
        use_timestep_embedding=False,
        block_out_channels=(32, 32, 64),
        layers_per_block=1,
    )
    return diffusers.DanceDiffusionPipeline(unet=ready(network), scheduler=diffusers.IPNDMScheduler())


def xl_controlnet() -> Any:
    pipeline = xl()
    control = diffusers.ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(4, 8))
    return xl(diffusers.StableDiffusionXLControlNetPipeline, unet=pipeline.unet, controlnet=ready(control))


def depth2img() -> Any:
    depth = transformers.DPTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=4,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[4, 4, 4, 4],
        reassemble_factors=[1, 1, 1, 1],
        fusion_hidden_size=4,
        readout_type="ignore",
        is_hybrid=False,
        initializer_range=0.5,
    )
    return basic(
        diffusers.StableDiffusionDepth2ImgPipeline,
        unet=unet(in_channels=5),
        depth_estimator=ready(transformers.DPTForDepthEstimation(depth)),
        feature_extractor=transformers.DPTImageProcessor(size={"height": 16, "width": 16}),
    )


def pixels_of_text() -> Any:
    network = unet(
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="text_proj",
        cross_attention_dim=32,
        only_cross_attention=True,
        cross_attention_norm="group_norm",
        attention_head_dim=8,
    )
    return diffusers.IFPipeline(
        tokenizer=words(77),
        text_encoder=t5(),
        unet=network,
        scheduler=diffusers.DDPMScheduler(variance_type="learned_range"),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


def kandinsky_3() -> Any:
    network = diffusers.Kandinsky3UNet(
        time_embedding_dim=32,
        groups=4,
        attention_head_dim=8,
        layers_per_block=2,
        block_out_channels=(16, 32),
        cross_attention_dim=WIDTH,
        encoder_hid_dim=WIDTH,
    )
    return diffusers.Kandinsky3Pipeline(
        tokenizer=words(128),
        text_encoder=t5(),
        unet=ready(network),
        scheduler=diffusers.DDPMScheduler(),
        movq=quantised(4),
    )


def consistency() -> Any:
    network = plain_unet(num_class_embeds=10, resnet_time_scale_shift="scale_shift")
    return diffusers.ConsistencyModelPipeline(
        unet=network, scheduler=diffusers.CMStochasticIterativeScheduler(num_train_timesteps=40)
    )


def super_resolution() -> Any:
    network = plain_unet(in_channels=6, out_channels=3)
    return diffusers.LDMSuperResolutionPipeline(vqvae=quantised(), unet=network, scheduler=schedule())


# name: (build, further arguments of the call, component)
FAMILIES: dict[str, tuple[Any, ...]] = {
    "stable-diffusion": (stable, SIZE),
    "stable-diffusion-2": (stable_diffusion_2, SIZE),
    "stable-diffusion-euler": (stable_diffusion_euler, SIZE),
    "stable-diffusion-dpm": (stable_diffusion_dpm, SIZE),
    "stable-diffusion-pndm": (stable_diffusion_pndm, SIZE),
    "stable-diffusion-controlnet": (controlnet, {"image": PICTURE}),
    "stable-diffusion-img2img": (img2img, {"image": PICTURE}),
    "stable-diffusion-inpaint": (inpaint, {"image": PICTURE, "mask_image": MASK, **SIZE}),
    "instruct-pix2pix": (instruct, {"image": PICTURE}),
    "latent-consistency": (latent_consistency, SIZE),
    "stable-diffusion-xl": (xl, SIZE),
    "stable-diffusion-xl-img2img": (xl_img2img, {"image": PICTURE, "strength": 0.9}),
    "stable-diffusion-xl-inpaint": (xl_inpaint, {"image": PICTURE, "mask_image": MASK, **SIZE}),
    "ldm": (ldm,),
    "audio-diffusion": (audio_diffusion,),
    "ddpm": (ddpm,),
    "animatediff": (animatediff, {"num_frames": 2, **SIZE}),
    "dance-diffusion": (dance,),
    "stable-video-diffusion": (stable_video, {"image": PICTURE, "num_frames": 2, **SIZE}),
    "audioldm2": (audioldm2, {"audio_length_in_s": 0.4}),
    "audioldm": (audioldm, {"audio_length_in_s": 0.4}),
    "ldm-text": (ldm_text, {"height": 64, "width": 64}),
    "latent-upscaler": (latent_upscaler, {"image": PICTURE}),
    "stable-diffusion-upscale": (upscaler, {"image": PICTURE}),
    "kandinsky-2.2": (kandinsky, {"image_embeds": EMBEDDING, "negative_image_embeds": -EMBEDDING, **SIZE}),
    "kandinsky-2.2-prior": (kandinsky_combined, BOTH, "prior_prior"),
    "kandinsky-2.2-combined": (kandinsky_combined, BOTH, "unet"),
    "stable-cascade": (cascade, {"height": 128, "width": 128}),
    "pia": (pia, {"image": PICTURE, "num_frames": 2, **SIZE}),
    "text-to-video": (text_to_video, {"num_frames": 2, **SIZE}),
    "stable-diffusion-xl-controlnet": (xl_controlnet, {"image": PICTURE}),
    "depth2img": (depth2img, {"image": PICTURE}),
    "deepfloyd-if": (pixels_of_text, SIZE),
    "kandinsky-3": (kandinsky_3, {"height": 64, "width": 64}),
    "consistency": (consistency, {"output_type": "pt"}),
    "super-resolution": (super_resolution, {"image": PIXELS}),
}
