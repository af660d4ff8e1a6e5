"""Small images, captions and networks for the tests of the zoo."""

import pytest
import torch

from ldpruner.finetuning import Training
from zoo.data import Images

CAPTIONS = ("cat face, noto style", "red heart, noto style", "cat face, fluent flat style", "keycap: 7, twemoji style")

SHORT = Training(max_train_steps=6, train_batch_size=4, learning_rate=1e-3, lr_warmup_steps=2, checkpointing_steps=2)

AUTOENCODER = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 8),
    "norm_num_groups": 2,
}

DENOISER = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}

CAPTIONED_DENOISER = DENOISER | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}

TEXT_ENCODER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="package")
def images() -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(40) % 2, ("meadow", "sea"))
