"""Parts of small pipelines with random weights: tokenizers, text encoders, autoencoders."""

from typing import Any

import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

WORDS = ("<pad>", "<eos>", "a", "an", "of", "the", "red", "blue", "cat", "dog", "house", "tree", "sea", "bell")
PROMPTS = ("a red cat", "the blue sea", "a house", "the bell of a dog")
WIDTH = 16  # of text states


def words(length: int = 8) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of a few words that pads to `length` tokens."""
    model = models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<pad>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", model_max_length=length
    )


def clip(projected: bool = False, width: int = WIDTH, length: int = 8) -> Any:
    """A CLIP text encoder of two layers."""
    configuration = transformers.CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        projection_dim=width,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    model_class = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return ready(model_class(configuration))


def t5(width: int = WIDTH, vocabulary: int = len(WORDS)) -> Any:
    """A T5 encoder of two layers."""
    configuration = transformers.T5Config(
        vocab_size=vocabulary, d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=2
    )
    return ready(transformers.T5EncoderModel(configuration))


def umt5(width: int = WIDTH) -> Any:
    """A multilingual T5 encoder of two layers."""
    configuration = transformers.UMT5Config(
        vocab_size=len(WORDS), d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=2
    )
    return ready(transformers.UMT5EncoderModel(configuration))


def decoder(configuration: Any, model: Any) -> Any:
    """A language model of two layers that reads prompts, from the classes of its configuration and its network."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    tokens = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    return ready(model(configuration(**sizes, **heads, **tokens)))


def picture(size: int = 16) -> Image.Image:
    """A square picture of a colour gradient."""
    red, blue = np.meshgrid(*[np.linspace(0, 255, size)] * 2)
    return Image.fromarray(np.stack([red, 0 * red, blue], axis=-1).astype(np.uint8))


def images(channels: int = 4, scale: float = 1.0, **settings: Any) -> Any:
    """An autoencoder of images that halves them once."""
    return ready(
        AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=channels,
            norm_num_groups=4,
            scaling_factor=scale,
            **settings,
        )
    )


def vision(size: int = 16, width: int = WIDTH) -> Any:
    """A CLIP image encoder of two layers, on four patches."""
    configuration = transformers.CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=size,
        patch_size=size // 2,
        projection_dim=width,
    )
    return ready(transformers.CLIPVisionModelWithProjection(configuration))


def letters(tokenizer_class: Any, length: int = 8) -> Any:
    """A tokenizer of single letters, of the class that a pipeline asks for."""
    characters = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
    if tokenizer_class is transformers.T5Tokenizer:
        scores = [(character, 0.0) for character in [*characters, "\u2581"]]
        return tokenizer_class(vocab=scores, extra_ids=0, model_max_length=length)
    indices = {character: index for index, character in enumerate([*characters, "\u0120"])}
    return tokenizer_class(vocab=indices, merges=[], model_max_length=length)


def ready(network: nn.Module) -> Any:
    """A network for inference; weights that are initialised to zero become random, as after training."""
    with torch.no_grad():
        for weight in network.parameters():
            if not weight.count_nonzero():
                nn.init.normal_(weight, std=0.1)
    return network.eval()
