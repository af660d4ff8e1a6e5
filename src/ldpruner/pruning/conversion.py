"""Gives networks with stand-ins their native form, and checks that it computes the same."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from torch import nn
from torch.utils._pytree import tree_leaves

from ldpruner.operators.discovery import Removal
from ldpruner.operators.native import NativeForm, base_class, built, native_form, plain_config
from ldpruner.operators.patching import MISFITS, modified
from ldpruner.pipelines.denoiser import Denoiser
from ldpruner.runtime import adapting_class, pruned_class
from ldpruner.stand_ins import ORIGINAL, REMOVED, SETTING_TYPES, old_name

DEFAULTS = "_use_default_values"  # where diffusers notes fields that nobody set: `from_config` leaves these out


def checked_form(denoiser: Denoiser, removals: Sequence[Removal], form: NativeForm) -> NativeForm:
    """A native form, if it repeats what stand-ins compute in the recorded call, bit for bit; else the part that does.

    A block may depend on its place: a ControlNet adds residuals to each by its number. Such blocks keep stand-ins.
    """
    network: Any = denoiser.module
    with modified(network, removals):
        expected = _tensors(denoiser)

    def is_exact(form: NativeForm) -> bool:
        with modified(network, removals):
            trial: Any = _with_same_weights(network)
        apply_native_(trial, form)
        actual = _tensors(replace(denoiser, module=trial))
        return 0 < len(actual) == len(expected) and all(map(torch.equal, actual, expected))

    return form if is_exact(form) else native_form(network, removals, is_exact)


def apply_native_(network: Any, form: NativeForm) -> None:
    """Gives a network whose removed modules have stand-ins a native form: its modules, configuration and class."""
    if form.removed:
        before, after = (built(base_class(network), config) for config in (plain_config(network), form.config))
        for block in form.blocks:
            _replace_block_(network, block, after.get_submodule(str(form.new_name(block))))
        _take_out_(network, form.removed)
        _adopt_settings_(network, before, after, form.removed)
    _register_(network, form)


def _replace_block_(network: nn.Module, name: str, block: nn.Module) -> None:
    """Puts a block of another class in the place of one, with the modules of the old one that it has."""
    path, _, index = name.rpartition(".")
    for child_name, child in network.get_submodule(name).named_children():
        if hasattr(block, child_name):
            setattr(block, child_name, child)
    setattr(network.get_submodule(path), index, block)


def _take_out_(network: nn.Module, removed: Sequence[str]) -> None:
    """Takes modules out of their lists, those of inner lists first; a child of the network becomes None."""
    parents = {name.rpartition(".")[0] for name in removed}
    for path in sorted(parents, key=lambda path: -path.count(".")):
        module = network.get_submodule(path)
        if isinstance(module, nn.ModuleList):
            parent, _, name = path.rpartition(".")
            kept = [child for index, child in module.named_children() if f"{path}.{index}" not in removed]
            setattr(network.get_submodule(parent), name, nn.ModuleList(kept))
        elif not path:
            for name in removed:
                if "." not in name:
                    setattr(network, name, None)


def _adopt_settings_(network: nn.Module, before: nn.Module, after: nn.Module, removed: Sequence[str]) -> None:
    """Sets the attributes that the class computes from its configuration, where the configuration changes them."""
    old, new = dict(before.named_modules()), dict(after.named_modules())
    for name, module in network.named_modules():
        if name in new and (earlier := old.get(old_name(name, removed))) is not None:
            settings = _settings(earlier)
            for key, value in _settings(new[name]).items():
                if key in settings and settings[key] != value:
                    setattr(module, key, value)


def _settings(module: nn.Module) -> dict[str, Any]:
    """The plain attributes of a module."""
    entries = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {name: value for name, value in entries.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if isinstance(value, (list, tuple)) else isinstance(value, SETTING_TYPES)


def _register_(network: Any, form: NativeForm) -> None:
    """Records a native form in the class and the configuration, so that the network saves and loads as it is."""
    base, config = base_class(network), dict(network.config)
    earlier = config.pop(REMOVED, ())
    added: dict[str, Any] = {}
    network.__class__ = pruned_class(base) if form.rest else adapting_class(base)
    if form.rest:
        removals = [removal.model_dump(mode="json") for removal in form.rest]
        added |= {"removals": removals, "auto_map": network.auto_map}
    if removed := [*earlier, *(old_name(name, earlier) for name in form.removed)]:
        original = {**config, **config.pop(ORIGINAL, {})}
        changed = sorted(name for name, value in form.config.items() if original.get(name) != value)
        added |= {REMOVED: removed, ORIGINAL: {name: original.get(name) for name in changed}}
    defaults = [name for name in config.get(DEFAULTS, ()) if config[name] == form.config.get(name)]
    private = {name: value for name, value in config.items() if name.startswith("_")}
    network._internal_dict = FrozenDict({**private, **form.config, DEFAULTS: defaults, **added})


def _with_same_weights(network: nn.Module) -> nn.Module:
    """A copy of a network that shares its weights."""
    return copy.deepcopy(network, {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())})


def _tensors(denoiser: Denoiser) -> list[torch.Tensor]:
    """The tensors of the output of the recorded call; none where the network cannot be called."""
    try:
        output = denoiser()
    except MISFITS:
        return []
    leaves = tree_leaves(tuple(output.values()) if isinstance(output, dict) else output)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
