"""Channel pruning: importance, gradients, and the search for a latency."""

import copy
import functools
import math
import sys
from collections.abc import Callable

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.nn.functional import mse_loss

import ldpruner
from benchmarks.channels import Examples, channel_pruned, denoising_gradients, to_latency, until_small
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pipelines.sampling import sample_latents

pytestmark = pytest.mark.extensive

PROBE = ldpruner.Probe(samples=2, steps=2)


@pytest.fixture(scope="module")
def digits() -> DiffusionPipeline:
    return ldpruner.load("zoo:digits")


@pytest.fixture(scope="module")
def examples() -> Examples:
    return Examples(torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", ["digits", "emoji"])
def test_a_narrowed_pipeline_runs_with_fewer_parameters(name: str) -> None:
    pipeline = ldpruner.load(f"zoo:{name}")
    pruned = channel_pruned(pipeline, 0.3)
    assert 0.4 < count_parameters(pruned.unet) / count_parameters(pipeline.unet) < 0.6
    latents = sample_latents(pruned, PROBE, range(2))
    assert latents.shape == sample_latents(pipeline, PROBE, range(2)).shape
    assert latents.isfinite().all()
    assert pruned.unet is not pipeline.unet
    assert pruned.scheduler is not pipeline.scheduler
    assert all(weight.grad is None for weight in pruned.unet.parameters())


def test_a_narrowed_norm_keeps_whole_groups(digits: DiffusionPipeline) -> None:
    pruned = channel_pruned(digits, 0.5).unet
    for name, before in digits.unet.named_modules():
        if isinstance(before, nn.GroupNorm):
            after = pruned.get_submodule(name)
            assert (after.num_groups, after.num_channels) == (before.num_groups // 2, before.num_channels // 2)


def test_the_channels_of_least_magnitude_go(digits: DiffusionPipeline) -> None:
    pipeline, name = copy.copy(digits), "mid_block.resnets.0.conv1"
    network = copy.deepcopy(digits.unet)
    weight = network.get_submodule(name).weight
    with torch.no_grad():  # the first of 16 groups of 10 channels is made small wherever it occurs
        weight[:10] *= 1e-3
        network.get_submodule("mid_block.resnets.0.conv2").weight[:, :10] *= 1e-3
        network.get_submodule("mid_block.resnets.0.time_emb_proj").weight[:10] *= 1e-3
    pipeline.register_modules(unet=network)
    left = channel_pruned(pipeline, 1 / 16).unet.get_submodule(name).weight
    assert len(left) == 150
    # of its inputs, too, some are gone
    assert left.abs().amin(dim=(1, 2, 3)).shape == (150,)
    assert left.square().sum(dim=(1, 2, 3)).min() > weight[:10].square().sum(dim=(1, 2, 3)).max()


def test_gradients_are_those_of_the_denoising_loss(digits: DiffusionPipeline, examples: Examples) -> None:
    gradients = denoising_gradients(digits, examples, threshold=0, levels=2)
    network, generator = copy.deepcopy(digits.unet), torch.Generator().manual_seed(0)
    for level in (0, 999):
        kept = float(digits.scheduler.alphas_cumprod[level])
        noise = torch.randn(examples.latents.shape, generator=generator)
        noisy = math.sqrt(kept) * examples.latents + math.sqrt(1 - kept) * noise
        velocity = math.sqrt(kept) * noise - math.sqrt(1 - kept) * examples.latents
        mse_loss(network(noisy, torch.tensor([level] * 2)).sample, velocity).backward()
    for name, weight in network.named_parameters():
        torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_losses_count_until_one_is_small_beside_the_largest() -> None:
    losses = list(torch.tensor([0.5, 1.0, 0.06, 0.04, 0.9]))
    assert list(until_small(losses, 0.05)) == losses[:3]
    assert list(until_small(losses, 0)) == losses


def test_gradients_choose_other_channels_than_magnitude(digits: DiffusionPipeline, examples: Examples) -> None:
    gradients = denoising_gradients(digits, examples, levels=2)
    taylor, magnitude = channel_pruned(digits, 0.3, gradients), channel_pruned(digits, 0.3)
    assert count_parameters(taylor.unet) == count_parameters(magnitude.unet)
    assert not torch.equal(sample_latents(taylor, PROBE, [0]), sample_latents(magnitude, PROBE, [0]))


def size_left(original: DiffusionPipeline) -> Callable[[DiffusionPipeline], float]:
    """The share of the parameters, in place of a measured latency."""
    return lambda pruned: count_parameters(pruned.unet) / count_parameters(original.unet)


def test_the_search_ends_at_or_just_below_the_latency(digits: DiffusionPipeline) -> None:
    reached = to_latency(functools.partial(channel_pruned, digits), size_left(digits), 0.5)
    assert 0.45 < reached.latency <= 0.5
    assert size_left(digits)(reached.pipeline) == reached.latency


def test_the_search_gives_the_fastest_cut_where_none_is_enough(digits: DiffusionPipeline) -> None:
    reached = to_latency(functools.partial(channel_pruned, digits), size_left(digits), 0.001)
    assert reached.ratio == 7 / 8
    assert reached.latency > 0.001


def test_the_search_measures_few_pipelines(digits: DiffusionPipeline) -> None:
    ratios: list[float] = []

    def narrowed(ratio: float) -> DiffusionPipeline:
        ratios.append(ratio)
        return digits

    reached = to_latency(narrowed, lambda _: 1 - ratios[-1] ** 2, 0.77)
    assert len(ratios) <= 8
    assert 0.77 * 0.98 <= reached.latency <= 0.77


def test_without_torch_pruning_the_error_says_what_to_install(
    digits: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ImportError, match="pip install torch-pruning"):
        channel_pruned(digits, 0.3)
