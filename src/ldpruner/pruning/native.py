"""Pruned networks in the terms of their own class: fewer blocks, blocks without attention, no middle block.

No architecture is known by name. A configuration with smaller counts is built on the meta device, and the names and
shapes of its weights are compared with those that are left.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn

from ldpruner.operators.discovery import Removal
from ldpruner.pipelines.library_logs import without_chatter

Config: TypeAlias = dict[str, Any]
Configurations: TypeAlias = Callable[[Config], Iterator[Config]]  # what to try in place of a configuration

ATTENTION = re.compile("(Simple)?(Cross)?Attn")  # in the name of a block's class
DEFAULTS = "_use_default_values"  # where diffusers notes fields that nobody set: `from_config` leaves these out
COUNTS, REVERSE_COUNTS = "transformer_layers_per_block", "reverse_transformer_layers_per_block"  # of U-Nets


@dataclass(frozen=True)
class Change:
    """Removals that a configuration may express together, by the names of the original's modules.

    Attributes:
        removals: what is removed.
        dropped: modules that are gone then.
        renamed: new names of the modules that move up in a list.
        block: the block that becomes one of another class, if any.
    """

    removals: tuple[Removal, ...]
    dropped: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)
    block: str = ""

    def new_name(self, name: str) -> str | None:
        """How a module or a weight is called after the change; None if it is gone."""
        if any(f"{name}.".startswith(f"{gone}.") for gone in self.dropped):
            return None
        old = next((old for old in self.renamed if f"{name}.".startswith(f"{old}.")), "")
        return self.renamed.get(old, "") + name[len(old) :]


@dataclass(frozen=True)
class NativeForm:
    """How a network's own class expresses removals.

    Attributes:
        config: builds what is left, but for `rest`.
        changes: what the configuration expresses; those of inner lists come first.
        rest: the other removals, by the new names of their modules.
    """

    config: Config
    changes: tuple[Change, ...] = ()
    rest: tuple[Removal, ...] = ()

    def new_name(self, name: str) -> str | None:
        """How a module or a weight of the original is called now; None if it is gone."""
        new: str | None = name
        for change in self.changes:
            new = change.new_name(new) if new is not None else None
        return new


def native_form(network: Any, removals: Sequence[Removal]) -> NativeForm:
    """Expresses as many removals as possible in the configuration of the original network's class."""
    form = NativeForm(_explicit(network))
    expressed: set[str] = set()
    for change, configurations in _changes(network, removals):
        if expressed.isdisjoint(removal.operator for removal in change.removals):
            wider = NativeForm(form.config, (*form.changes, change))
            left = {wider.new_name(name): weight.shape for name, weight in network.state_dict().items()}
            left.pop(None, None)
            fitting = (config for config in configurations(form.config) if _shapes(network, config) == left)
            if (config := next(fitting, None)) is not None:
                form = NativeForm(config, wider.changes)
                expressed.update(removal.operator for removal in change.removals)
    rest = [removal for removal in removals if removal.operator not in expressed]
    return NativeForm(form.config if form.changes else _plain(network), form.changes, _moved(rest, form))


def apply_native_(network: Any, form: NativeForm) -> None:
    """Gives a network whose removed modules have stand-ins the modules of a native form, and its configuration."""
    template = _built(network, form.config)
    for change in form.changes:
        if change.block:
            path, _, index = change.block.rpartition(".")
            new_name = form.new_name(change.block)
            assert new_name is not None
            block = template.get_submodule(new_name)
            for name, child in network.get_submodule(change.block).named_children():
                if hasattr(block, name):
                    setattr(block, name, child)
            network.get_submodule(path)[int(index)] = block
        elif "." not in change.dropped[0]:
            setattr(network, change.dropped[0], None)
        else:
            for path in {name.rpartition(".")[0] for name in change.dropped}:
                parent, _, name = path.rpartition(".")
                items = network.get_submodule(path).named_children()
                kept = [child for index, child in items if f"{path}.{index}" not in change.dropped]
                setattr(network.get_submodule(parent), name, nn.ModuleList(kept))
    defaults = [name for name in network.config.get(DEFAULTS, ()) if network.config[name] == form.config.get(name)]
    network.register_to_config(**form.config, **{DEFAULTS: defaults})


def _changes(network: nn.Module, removals: Sequence[Removal]) -> Iterator[tuple[Change, Configurations]]:
    """Changes to try, those of inner lists first, each with the configurations that may express it."""
    plain = [removal for removal in removals if removal.modification == "identity" and not removal.cascaded]
    whole = {removal.operator: removal for removal in plain}
    parents = {name.rpartition(".")[0] for name in whole}
    lists = {path: module for path in parents if isinstance(module := network.get_submodule(path), nn.ModuleList)}
    alike: dict[tuple[int, int], list[tuple[str, ...]]] = defaultdict(list)  # lists that may share a count
    for path in sorted(lists, key=lambda path: (-path.count("."), path)):
        length = len(lists[path])
        removed = tuple(name for index in range(length) if (name := f"{path}.{index}") in whole)
        alike[length, len(removed)].append(removed)
        yield _shortened(whole, removed, length, len(removed))
        if f"{path}.{length - 1}" in removed[1:]:  # the last block may be a special one
            yield _shortened(whole, removed[:-1], length, len(removed) - 1)
        if len(removed) == length:
            yield from _without_attention(network, whole, path, length)
    for (length, count), groups in alike.items():
        if len(groups) > 1:
            yield _shortened(whole, tuple(itertools.chain(*groups)), length, count)
    for name in (name for name in whole if "." not in name):
        yield Change((whole[name],), (name,)), _without_child(name)


def _shortened(
    whole: Mapping[str, Removal], dropped: tuple[str, ...], length: int, count: int
) -> tuple[Change, Configurations]:
    """Lists of some length without some of their modules, as many of each list."""
    renamed: dict[str, str] = {}
    for path in dict.fromkeys(name.rpartition(".")[0] for name in dropped):
        names = [name for index in range(length) if (name := f"{path}.{index}") not in dropped]
        renamed |= {name: f"{path}.{index}" for index, name in enumerate(names)}
    kept = [int(name.rpartition(".")[2]) for name in renamed]

    def configurations(config: Config) -> Iterator[Config]:
        for name in config:
            for value in _replaced(config[name], length, length - count):
                yield {**config, name: value}
                for places in config:  # which blocks have something special
                    if _are_places(config[places], length) and places != name:
                        moved = [kept.index(place) for place in config[places] if place in kept]
                        yield {**config, name: value, places: moved}

    return Change(tuple(whole[name] for name in dropped), dropped, renamed), configurations


def _without_attention(
    network: nn.Module, whole: Mapping[str, Removal], path: str, length: int
) -> Iterator[tuple[Change, Configurations]]:
    """A block whose attentions are all gone, as a block of the class without attention."""
    block = path.rpartition(".")[0]
    index = block.rpartition(".")[2]
    class_name = type(network.get_submodule(block)).__name__
    if not index.isdigit() or not ATTENTION.search(class_name):
        return
    removals = tuple(whole[f"{path}.{item}"] for item in range(length))

    def configurations(config: Config) -> Iterator[Config]:
        for name, value in config.items():
            if isinstance(value, (list, tuple)) and int(index) < len(value) and value[int(index)] == class_name:
                plain = ATTENTION.sub("", class_name)
                yield {**config, name: [plain if place == int(index) else other for place, other in enumerate(value)]}

    yield Change(removals, (path,), block=block), configurations


def _without_child(name: str) -> Configurations:
    """Configurations that say that a child of the network has no type, such as no middle block."""

    def configurations(config: Config) -> Iterator[Config]:
        if config.get(f"{name}_type") is not None:
            yield {**config, f"{name}_type": None}

    return configurations


def _replaced(value: Any, old: int, new: int) -> Iterator[Any]:
    """A number replaced by another, or a nest of lists with the number replaced in one place."""
    if type(value) is int and value == old:
        yield new
    if isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            yield from ([*value[:place], other, *value[place + 1 :]] for other in _replaced(item, old, new))


def _are_places(value: Any, length: int) -> bool:
    """Whether a field lists places in a list of this length."""
    is_list = isinstance(value, (list, tuple)) and len(value) > 0
    return is_list and all(type(item) is int and item < length for item in value)


def _plain(network: Any) -> Config:
    """The configuration of a network, without what diffusers notes beside it."""
    return {name: value for name, value in network.config.items() if not name.startswith("_")}


def _explicit(network: Any) -> Config:
    """The same configuration with a number of transformer layers for each block, where a U-Net has such numbers."""
    config = _plain(network)
    if COUNTS in config and REVERSE_COUNTS in config:
        for name, blocks in ((COUNTS, network.down_blocks), (REVERSE_COUNTS, network.up_blocks)):
            config[name] = [_layers(block) or 1 for block in blocks]
    return config


def _layers(block: Any) -> list[int]:
    """The number of transformer layers in each attention of a block."""
    attentions = getattr(block, "attentions", None) or ()
    return [len(layers.transformer_blocks) for layers in attentions if hasattr(layers, "transformer_blocks")]


def _built(network: Any, config: Config) -> nn.Module:
    """A network of the same class on the meta device."""
    with torch.device("meta"), without_chatter():
        built = type(network).from_config(config)
    assert isinstance(built, nn.Module)
    return built.eval()


def _shapes(network: Any, config: Config) -> dict[str, torch.Size] | None:
    """The shapes of the weights that a configuration has; None if it cannot be built."""
    try:
        return {name: weight.shape for name, weight in _built(network, config).state_dict().items()}
    except Exception:  # noqa: BLE001  (a class refuses a configuration in its own way)
        return None


def _moved(removals: Sequence[Removal], form: NativeForm) -> tuple[Removal, ...]:
    """Removals by the new names of their modules."""

    def name(old: str) -> str:
        new = form.new_name(old)
        assert new is not None, old  # removals do not overlap
        return new

    return tuple(
        removal.replace(operator=name(removal.operator), cascaded=tuple(map(name, removal.cascaded)))
        for removal in removals
    )
