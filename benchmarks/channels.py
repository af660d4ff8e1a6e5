"""Baselines that narrow a U-Net instead of removing operators: channel pruning with torch-pruning.

Channels are ranked by magnitude, or by a Taylor expansion of the denoising loss. A diffusers configuration cannot
express the remaining widths, so such a pipeline runs and can be finetuned, but cannot be saved.
"""

import copy
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.running import schedulers

RATIOS = tuple(part / 8 for part in range(1, 8))  # cuts, the first ones to try
STEPS = 8  # measurements of a search, at most
CLOSE = 0.02  # of the latency that is wanted
THRESHOLD = 0.05  # of Diff-Pruning's own examples
LEVELS = 100  # noise levels at which gradients are taken, evenly spread


@dataclass(frozen=True)
class Examples:
    """Training examples of a denoiser: clean latents and their conditions.

    Attributes:
        latents: scaled as the denoiser sees them, [samples, channels, height, width].
        conditions: further arguments of the denoiser by name, a row for each sample, such as `encoder_hidden_states`.
    """

    latents: Tensor
    conditions: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Reached:
    """The result of a search for a latency: the cut of channels, and the measured fraction of the latency."""

    pipeline: DiffusionPipeline
    ratio: float
    latency: float


def to_latency(
    narrowed: Callable[[float], DiffusionPipeline], left: Callable[[DiffusionPipeline], float], wanted: float
) -> Reached:
    """Finds a small cut of channels that leaves at most the wanted fraction of the latency.

    Eighths are tried in turn, as fewer channels are not always faster: kernels like even widths (on `zoo:digits`, a
    cut of 7/16 took twice as long as one of 8/16). Below the first that is enough, the search goes on by bisection.
    Where none is enough, the result is the fastest.

    Args:
        narrowed: the pruned pipeline at a share of channels, such as `channel_pruned` with its pipeline given.
        left: measures the fraction of the original's latency that a pipeline takes.
        wanted: that fraction.
    """

    def measured(ratio: float) -> Reached:
        pipeline = narrowed(ratio)
        return Reached(pipeline, ratio, left(pipeline))

    tried: list[Reached] = []
    for ratio in RATIOS:
        tried.append(measured(ratio))
        if tried[-1].latency <= wanted:
            break
    best, low = min(tried, key=lambda reached: reached.latency), tried[-2].ratio if len(tried) > 1 else 0.0
    for _ in range(STEPS - len(tried)):
        if best.latency > wanted or best.latency >= wanted * (1 - CLOSE):
            break
        middle = measured((low + best.ratio) / 2)
        if middle.latency <= wanted:
            best = middle
        else:
            low = middle.ratio
    return best


def denoising_gradients(
    pipeline: DiffusionPipeline,
    examples: Examples,
    *,
    threshold: float = THRESHOLD,
    levels: int = LEVELS,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The gradient of the denoising loss for every weight of the denoiser, summed over noise levels.

    From the least noise on, until the loss falls below `threshold` of the largest loss so far; 0 takes all levels.
    Source: Diff-Pruning (Fang, Ma and Wang 2023, arXiv 2305.10924). A denoiser for v-prediction does not get better
    with more noise, as one for epsilon-prediction does, so there all levels may count.
    """
    denoiser = copy.deepcopy(find_denoiser(pipeline).module).requires_grad_(True)
    for loss in until_small(_losses(denoiser, examples, schedulers(pipeline)[0], levels, seed), threshold):
        loss.backward()
    # a weight that no loss reaches, such as that of an unused branch, has none
    return {name: _gradient(weight) for name, weight in denoiser.named_parameters()}


def until_small(losses: Iterable[Tensor], threshold: float) -> Iterator[Tensor]:
    """The losses up to the first one that is below a fraction of the largest before it."""
    largest = 0.0
    for loss in losses:
        value = loss.item()
        largest = max(largest, value)
        if value < threshold * largest:
            return
        yield loss


def _gradient(weight: nn.Parameter) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def _losses(denoiser: nn.Module, examples: Examples, scheduler: Any, levels: int, seed: int) -> Iterator[Tensor]:
    """The denoising loss at each noise level, least noise first, on the target of the scheduler."""
    clean, generator = examples.latents, torch.Generator().manual_seed(seed)
    by_velocity = scheduler.config.prediction_type == "v_prediction"
    for level in torch.linspace(0, scheduler.config.num_train_timesteps - 1, levels).long():
        times = level.repeat(len(clean))
        noise = torch.randn(clean.shape, generator=generator)
        target = scheduler.get_velocity(clean, noise, times) if by_velocity else noise
        noisy = scheduler.add_noise(clean, noise, times)
        yield mse_loss(denoiser(noisy, times, **examples.conditions).sample, target)


def channel_pruned(
    pipeline: DiffusionPipeline, ratio: float, gradients: Mapping[str, Tensor] | None = None
) -> DiffusionPipeline:
    """A copy of a pipeline whose U-Net has lost a share of its channels; all other components are shared.

    Every layer loses the same share. Channels that share a group of a norm go together, so the groups that are left
    are normalised as before; each head of an attention loses as many as the others. At least one is left of each.

    Args:
        pipeline: with a `UNet2DModel` or a `UNet2DConditionModel`.
        ratio: the share of channels that goes.
        gradients: of `denoising_gradients`, for importance by Taylor expansion; None for that by magnitude.

    Raises:
        ImportError: torch-pruning is not installed.
    """
    denoiser = find_denoiser(pipeline)
    importance = _importance(gradients is not None)
    network = copy.deepcopy(denoiser.module).requires_grad_(True)
    for name, weight in network.named_parameters():
        weight.grad = gradients[name].clone() if gradients is not None else None
    names = inspect.signature(network.forward).parameters
    call = {**dict(zip(names, denoiser.arguments, strict=False)), **denoiser.options}
    _narrow_(network, call, ratio, importance)
    _restate_(network)
    network.zero_grad()
    steppers = {id(part) for part in schedulers(pipeline)}
    own = {name: copy.deepcopy(part) for name, part in pipeline.components.items() if id(part) in steppers}
    other = copy.copy(pipeline)
    other.register_modules(**{**own, denoiser.component: network})
    return other


def _importance(by_gradient: bool) -> Callable[[Any], Tensor]:
    module = _torch_pruning().importance
    importance: Callable[[Any], Tensor] = (
        module.GroupTaylorImportance(multivariable=True) if by_gradient else module.GroupMagnitudeImportance(p=2)
    )
    return importance


def _torch_pruning() -> Any:
    try:
        return importlib.import_module("torch_pruning")
    except ImportError as error:
        raise ImportError(
            "channel pruning is done by torch-pruning, which only this benchmark needs: pip install torch-pruning"
        ) from error


def _narrow_(network: nn.Module, call: Mapping[str, Any], ratio: float, importance: Callable[[Any], Tensor]) -> None:
    """Removes the least important channels of every group of layers that must keep the same ones.

    torch-pruning's own way is to take one channel from every group of a norm. On small U-Nets that leaves norms of
    single channels, which lose what the mean of a channel says: in a trial of 96 finetuning steps on `zoo:satellite`,
    the error of the output was then larger, by 1.4 to 2 times.
    """
    graph = _torch_pruning().DependencyGraph()
    graph.build_dependency(network, example_inputs=call, forward_fn=lambda module, given: module(**given)[0])
    heads = _heads(network)
    groups = graph.get_all_groups(
        ignored_layers=[network.get_submodule("conv_out")], root_module_types=[nn.Conv2d, nn.Linear]
    )
    # all are chosen before any goes: importance is that of the whole network
    cuts = [(group[0].dep, _least(importance(group), ratio, _layout(group, heads))) for group in groups]
    for root, channels in cuts:
        if channels:
            graph.get_pruning_group(root.target.module, root.handler, channels).prune()
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = _kept(module.num_groups, ratio)


def _heads(network: nn.Module) -> dict[nn.Module, int]:
    """How many heads the outputs of each projection of an attention are divided into."""
    attentions = [module for module in network.modules() if isinstance(module, Attention)]
    return {layer: part.heads for part in attentions for layer in (part.to_q, part.to_k, part.to_v)}


@dataclass(frozen=True)
class _Layout:
    """How the channels of a group of layers depend on each other: [copies, units, size] in one row.

    Attributes:
        copies: from each the same units are removed: the heads of an attention, the factors of a gated feed-forward.
        units: how many are ranked; None for all channels of a copy.
        named: whether every copy's channels must be named, as torch-pruning finds the others of a factor by itself.
    """

    copies: int = 1
    units: int | None = None
    named: bool = True


def _layout(group: Any, heads: Mapping[nn.Module, int]) -> _Layout:
    modules = [item.dep.target.module for item in group]
    norms = [module.num_groups for module in modules if isinstance(module, nn.GroupNorm)]
    if norms:
        return _Layout(units=norms[0])
    factors = len(group[0].idxs) // min(len(item.idxs) for item in group)
    if factors > 1:
        return _Layout(copies=factors, named=False)
    return _Layout(copies=max(heads.get(module, 1) for module in modules))


def _least(values: Tensor, ratio: float, layout: _Layout) -> list[int]:
    """The indices of the least important share of the channels, by the importance of each."""
    units = layout.units or len(values) // layout.copies
    places = torch.arange(len(values)).reshape(layout.copies, units, -1)
    ranked = values.cpu().reshape(places.shape).mean(dim=(0, 2)).argsort()
    gone = places[:, ranked[: units - _kept(units, ratio)]]
    indices: list[int] = (gone if layout.named else gone[:1]).flatten().sort().values.tolist()
    return indices


def _kept(units: int, ratio: float) -> int:
    return max(1, round(units * (1 - ratio)))


def _restate_(network: nn.Module) -> None:
    """Corrects the widths that modules store, as some check them when called."""
    for module in network.modules():
        if isinstance(module, (Downsample2D, Upsample2D)) and isinstance(module.conv, nn.Conv2d):
            module.channels, module.out_channels = module.conv.in_channels, module.conv.out_channels
        elif isinstance(module, ResnetBlock2D):
            module.in_channels, module.out_channels = module.conv1.in_channels, module.conv2.out_channels
        elif isinstance(module, Attention):
            module.query_dim, module.inner_dim = module.to_q.in_features, module.to_q.out_features
            module.cross_attention_dim, module.inner_kv_dim = module.to_k.in_features, module.to_k.out_features
            module.out_dim = module.to_out[0].out_features
        elif isinstance(module, Transformer2DModel):
            module.in_channels = module.out_channels = module.norm.num_channels
