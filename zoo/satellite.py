"""The settings of `zoo:satellite`: unconditional satellite photographs, 64x64, trained on EuroSAT."""

from __future__ import annotations

from zoo.recipe import Recipe
from zoo.training import Schedule

SATELLITE = Recipe(
    name="satellite",
    seed=0,
    autoencoder={
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (16, 32, 64, 64),
        "layers_per_block": 1,
        "latent_channels": 8,
        # Few groups: normalised two channels at a time, the 16 of full resolution forget the colour.
        "norm_num_groups": 2,
        "sample_size": 64,
    },
    autoencoder_schedule=Schedule(steps=1800, batch=8, rate=7e-4, warmup=50, weight_decay=1e-4, average=0.995, seed=1),
    decoder_schedule=Schedule(steps=1500, batch=8, rate=7e-4, warmup=50, weight_decay=1e-4, average=0.995, seed=4),
    divergence=1e-6,
    detail=0.25,
    texture=0.15,
    denoiser={
        "sample_size": 8,
        "in_channels": 8,
        "out_channels": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (64, 128, 160),
        "layers_per_block": 2,
        "attention_head_dim": 32,
        "norm_num_groups": 32,
    },
    denoiser_schedule=Schedule(steps=2000, batch=64, rate=1e-3, warmup=100, seed=2),
    refinement_schedule=Schedule(steps=1500, batch=64, rate=6e-4, warmup=50, seed=5),
    scheduler={
        "num_train_timesteps": 1000,
        "beta_start": 0.0015,
        "beta_end": 0.0195,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    },
    judge_schedule=Schedule(steps=700, batch=64, rate=2e-3, warmup=100, weight_decay=0.05, seed=3),
    sampling_steps=25,
    samples=2400,
)
