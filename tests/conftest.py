"""Tiny pipelines with random weights. Nothing here reaches the network."""

import copy
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
os.environ["OMP_NUM_THREADS"] = "1"  # read by torch: tiny matrices are slower on more
os.environ["MKL_CBWR"] = "COMPATIBLE"  # the same bits wherever weights lie in memory, as in a mapped file

import pytest
import tokenizers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

import ldpruner
from ldpruner.operators.discovery import Removal
from ldpruner.pipelines.denoiser import Denoiser
from ldpruner.pipelines.fingerprints import architecture
from ldpruner.profiling.costs import Costs, measure_costs
from ldpruner.profiling.machine import machine_of
from ldpruner.profiling.shares import module_shares
from ldpruner.scoring import runner
from ldpruner.selection.plan import PlannedRemoval

WORDS = ("<pad>", "a", "cat", "dog", "sea", "on", "the", "moon")


@pytest.fixture(scope="session", autouse=True)
def signals_have_their_defaults() -> Iterator[None]:
    """Shells make background jobs ignore Ctrl-C, and nohup a closed terminal; so would what the tests start."""
    defaults: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def costs_are_measured_once() -> Iterator[None]:
    """For each network: measuring what it costs takes longer than scoring it, and many tests score the same one."""
    known: dict[Any, Any] = {}

    def remembered(key: tuple[Any, ...], measure: Callable[[], Any]) -> Any:
        if key not in known:
            known[key] = measure()
        return known[key]

    def network(denoiser: Denoiser) -> str:
        return repr((architecture(denoiser.module), machine_of(denoiser.module)))

    def costs_of(pipeline: DiffusionPipeline, denoiser: Denoiser, probe: ldpruner.Probe) -> Costs:
        key = (type(pipeline), network(denoiser), probe.model_dump_json(exclude={"samples", "seed"}))
        return cast(Costs, remembered(key, lambda: measure_costs(pipeline, denoiser, probe)))

    def shares_of(denoiser: Denoiser) -> dict[str, float]:
        return cast(dict[str, float], remembered((network(denoiser),), lambda: module_shares(denoiser)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "measure_costs", costs_of)
        patch.setattr(runner, "module_shares", shares_of)
        yield


def tiny_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    ).eval()


def tiny_unet() -> UNet2DModel:
    return UNet2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
    ).eval()


@pytest.fixture(scope="session")
def tiny() -> DiffusionPipeline:
    """An unconditional latent diffusion pipeline, not to be changed: use `fresh`."""
    torch.manual_seed(0)
    return LDMPipeline(tiny_autoencoder(), tiny_unet(), DDIMScheduler(clip_sample=False))


@pytest.fixture
def fresh(tiny: DiffusionPipeline) -> DiffusionPipeline:
    """A copy of the tiny pipeline, to be changed."""
    return copy.deepcopy(tiny)


@pytest.fixture(scope="session")
def tiny_text() -> DiffusionPipeline:
    """A text-to-image pipeline."""
    torch.manual_seed(1)
    vocabulary = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<pad>")
    )
    vocabulary.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    text_config = CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=2,
        cross_attention_dim=16,
    )
    return StableDiffusionPipeline(
        vae=tiny_autoencoder(),
        text_encoder=CLIPTextModel(text_config).eval(),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="<pad>", model_max_length=8),
        unet=unet.eval(),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="session")
def tiny_transformer() -> DiffusionPipeline:
    """A class-conditional diffusion transformer; its weights are random, because its own initialisation is zero."""
    torch.manual_seed(2)
    network = DiTTransformer2DModel(
        sample_size=8, num_layers=2, attention_head_dim=8, num_attention_heads=2, in_channels=4, out_channels=4
    )
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return DiTPipeline(network.eval(), tiny_autoencoder(), DDIMScheduler(clip_sample=False))


def planned(removal: Removal) -> PlannedRemoval:
    """A removal as a part of a plan."""
    return PlannedRemoval(removal=removal.removal)


@pytest.fixture(scope="session")
def probe() -> ldpruner.Probe:
    """Three samples in two steps."""
    return ldpruner.Probe(samples=3, steps=2)


@pytest.fixture(scope="session")
def operators(tiny: DiffusionPipeline) -> tuple[ldpruner.Operator, ...]:
    """The operators of the tiny pipeline."""
    return ldpruner.find_operators(tiny)


@pytest.fixture(scope="session")
def scores(
    tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], probe: ldpruner.Probe
) -> ldpruner.Scores:
    """The scores of every modification of the tiny pipeline."""
    return ldpruner.score_operators(tiny, operators, probe, budgets=None)


@pytest.fixture(scope="session")
def folder(tiny: DiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline on disk, as diffusers saves it; not to be changed."""
    path = tmp_path_factory.mktemp("tiny") / "pipeline"
    tiny.save_pretrained(path)
    return path
