"""What a pruned denoiser is told: the task itself, the teacher's output, and the teacher's features at each stage."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ldpruner.operators.discovery import STAND_INS


def stages(teacher: nn.Module, student: nn.Module) -> tuple[str, ...]:
    """The stages whose features both networks have.

    They are the items of the lists at the top of the network, and whatever else at the top holds lists, such as the
    middle block of a U-Net. What was removed has no features to teach.
    """
    found = [name for child, part in teacher.named_children() for name in _stages_of(child, part)]
    kept = dict(student.named_modules())
    return tuple(name for name in found if name in kept and type(kept[name]).__name__ not in STAND_INS)


def _stages_of(name: str, part: nn.Module) -> list[str]:
    if isinstance(part, nn.ModuleList):
        return [f"{name}.{item}" for item, block in part.named_children() if any(block.children())]
    return [name] if any(isinstance(child, nn.ModuleList) for child in part.children()) else []


@contextmanager
def features_of(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What the named submodules return while the context is open, renewed in every call.

    Of several tensors, such as the two streams of a joint block, each counts; what lies in a list, such as what a
    U-Net keeps for its way up, does not.

    The hooks are on the submodules themselves, so they see calls through any wrapper around the network.
    """
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name in names:

            def keep(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                parts = output if isinstance(output, (tuple, list)) else [output]
                found.update({f"{name} {place}": one for place, one in enumerate(parts) if isinstance(one, Tensor)})

            stack.callback(module.get_submodule(name).register_forward_hook(keep).remove)
        yield found


def latent_loss(found: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """The mean squared error of what is found in noisy latents, [batch, ...], each sample's by its weight, [batch]."""
    return (weights * (found - target).square().flatten(1).mean(1)).mean()


def feature_loss(taught: Mapping[str, Tensor], learnt: Mapping[str, Tensor], *, normalised: bool) -> Tensor:
    """The mean squared difference of features, summed over the stages (Kim et al. 2023, equation 3).

    Normalised, each stage of each sample counts alike whatever the size of its features (Zhang et al. 2024). Stages
    whose shapes differ do not count.
    """
    known = {name: taught[name] for name in learnt if name in taught}
    pairs = [(one.float(), learnt[name].float()) for name, one in known.items() if one.shape == learnt[name].shape]
    terms = [_difference(known, one, normalised) for known, one in pairs]
    return torch.stack(terms).sum() if terms else torch.zeros(())


def _difference(known: Tensor, one: Tensor, normalised: bool) -> Tensor:
    errors = (known - one).square().flatten(1).mean(1)
    # sample by sample, so that a batch shared among processes has the same loss
    return (errors / known.square().flatten(1).mean(1) if normalised else errors).mean()
