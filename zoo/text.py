"""Captions for a zoo model: a tokenizer trained on them, and a denoiser with its text encoder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from zoo.denoiser import add_noise
from zoo.training import Loss

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffusers import DDIMScheduler, UNet2DConditionModel

START, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(captions: Sequence[str], vocabulary_size: int, max_tokens: int) -> CLIPTokenizer:
    """A tokenizer as CLIP's, trained on `captions`."""
    clip = CLIPTokenizer().backend_tokenizer
    tokenizer = Tokenizer(BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    letters = sorted(ByteLevel.alphabet())
    # named in this order here: the trainer would number the last letters of words differently each time
    first = [START, END, *letters, *(f"{letter}</w>" for letter in letters)]
    trainer = BpeTrainer(
        vocab_size=vocabulary_size, special_tokens=first, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=max_tokens)


def tokens_of(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Token numbers as a Stable Diffusion pipeline makes them: [captions, length]."""
    tokens: Tensor = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
    return tokens


def build_text_encoder(settings: Mapping[str, Any], tokenizer: CLIPTokenizer, seed: int) -> CLIPTextModel:
    """An untrained text encoder for `tokenizer`, initialised from `seed`."""
    config = CLIPTextConfig(
        **settings,
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPTextModel(config)


class CaptionedDenoiser(nn.Module):
    """A denoiser and its text encoder, which are trained together."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, noisy: Tensor, times: Tensor, tokens: Tensor) -> Tensor:
        prediction: Tensor = self.unet(noisy, times, self.text_encoder(tokens).last_hidden_state).sample
        return prediction


def captioned_denoising(
    latents: Tensor,
    tokens: Tensor,
    empty: Tensor,
    scheduler: DDIMScheduler,
    *,
    caption_dropout: float,
    min_snr_gamma: float,
) -> Loss:
    """The loss of a `CaptionedDenoiser`: squared error of its v-prediction on noised `latents` with their captions.

    `latents` are scaled, [samples, channels, height, width]; `tokens` are those of each wording of their captions,
    [wordings, samples, length], one of which is taken at random. A share `caption_dropout` of the captions is replaced
    by `empty`, for classifier-free guidance (Ho and Salimans 2022).

    An error in v is one in the latents, weighted by SNR + 1. That weight is bounded by `min_snr_gamma`, so that low
    noise levels do not outweigh the others (after Hang et al. 2023, whose bound on the SNR alone would leave nothing
    of the last level under zero terminal SNR).
    """
    snr_plus_1 = 1 / (1 - scheduler.alphas_cumprod)
    weights = (min_snr_gamma / snr_plus_1).clamp(max=1)

    def sample(batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        chosen = torch.randint(len(latents), (batch,), generator=generator)
        wordings = torch.randint(len(tokens), (batch,), generator=generator)
        is_dropped = torch.rand((batch, 1), generator=generator) < caption_dropout
        prompts = torch.where(is_dropped, empty, tokens[wordings, chosen])
        noisy, target, times = add_noise(latents[chosen], scheduler, generator)
        return noisy, target, times, prompts, weights[times]

    def value(
        module: nn.Module, noisy: Tensor, target: Tensor, times: Tensor, prompts: Tensor, weight: Tensor
    ) -> Tensor:
        errors: Tensor = (module(noisy, times, prompts) - target).square().mean((1, 2, 3))
        return (weight * errors).mean()

    return Loss(sample, value)
