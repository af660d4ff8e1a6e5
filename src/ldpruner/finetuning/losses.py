"""The losses of distillation: distances of predictions, and of features at each stage of a network."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ldpruner.operators.discovery import STAND_INS
from ldpruner.stand_ins import REMOVED, new_name, old_name


def stages(teacher: nn.Module, student: nn.Module) -> dict[str, str]:
    """The names of the stages that both networks have: that in the teacher, and that in the student.

    A stage is an item of a list at the top of the network, or another child that holds lists, such as the middle block
    of a U-Net. Removed stages have no features to compare.
    """
    names = []
    for name, child in teacher.named_children():
        if isinstance(child, nn.ModuleList):
            names += [f"{name}.{index}" for index, block in child.named_children() if any(block.children())]
        elif any(isinstance(part, nn.ModuleList) for part in child.children()):
            names.append(name)
    modules = dict(student.named_modules())
    shared = {name: new for name, new in names_in(student, teacher, names).items() if new in modules}
    return {name: new for name, new in shared.items() if type(modules[new]).__name__ not in STAND_INS}


def names_in(student: nn.Module, teacher: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """How modules or weights of the teacher are called in the student, whose blocks may have moved up."""
    gone, left = ([*getattr(network, "config", {}).get(REMOVED, ())] for network in (teacher, student))
    pairs = {name: new_name(old_name(name, gone), left) for name in names}
    return {name: new for name, new in pairs.items() if new is not None}


@contextmanager
def features_of(module: nn.Module, names: Iterable[str]) -> Iterator[dict[tuple[int, int], Tensor]]:
    """What submodules return inside the context, by the place of the name and that of the tensor.

    Each call replaces the features of the last.

    Each tensor of a tuple counts, such as the two streams of a joint block; nested lists, such as the skip connections
    of a U-Net, do not. The hooks are on the submodules themselves, so they see calls through any wrapper.
    """
    features: dict[tuple[int, int], Tensor] = {}
    with ExitStack() as stack:
        for place, name in enumerate(names):

            def keep(_: nn.Module, __: Any, output: Any, place: int = place) -> None:
                outputs = output if isinstance(output, (tuple, list)) else [output]
                tensors = {(place, i): tensor for i, tensor in enumerate(outputs) if isinstance(tensor, Tensor)}
                features.update(tensors)

            stack.callback(module.get_submodule(name).register_forward_hook(keep).remove)
        yield features


def latent_loss(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """The mean squared error of predictions, [batch, ...], weighted by sample, [batch]."""
    return (weights * (prediction - target).square().flatten(1).mean(1)).mean()


def feature_loss(teacher: Mapping[Any, Tensor], student: Mapping[Any, Tensor], *, normalize: bool) -> Tensor:
    """The mean squared difference of features, summed over the stages (Kim et al. 2023, equation 3).

    Normalized, each stage of each sample counts alike whatever the size of its features (Zhang et al. 2024), unless
    all are zero. Stages of different shapes are left out.
    """
    terms = []
    for name in [name for name in student if name in teacher and teacher[name].shape == student[name].shape]:
        target = teacher[name].float()
        errors = (target - student[name].float()).square().flatten(1).mean(1)
        # by sample, so that a batch shared among processes has the same loss
        sizes = target.square().flatten(1).mean(1)
        terms.append((errors / sizes.where(sizes > 0, torch.ones(())) if normalize else errors).mean())
    return torch.stack(terms).sum() if terms else torch.zeros(())
