"""Pruned networks in the terms of their own class: fewer blocks, blocks without attention, no middle block.

No architecture is known by name. A configuration with smaller counts is built on the meta device, and the names and
shapes of its weights are compared with those that are left.
"""

import functools
import itertools
import json
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from ldpruner.operators.discovery import Operator, Removal
from ldpruner.operators.names import ancestors
from ldpruner.pipelines.library_logs import without_chatter
from ldpruner.stand_ins import new_name, remove_

Config: TypeAlias = dict[str, Any]
Configurations: TypeAlias = Callable[[Config], Iterator[Config]]  # what to try in place of a configuration

ATTENTION = re.compile("(Simple)?(Cross)?Attn")  # in the name of a block's class
COUNTS, REVERSE_COUNTS = "transformer_layers_per_block", "reverse_transformer_layers_per_block"  # of U-Nets


@dataclass(frozen=True)
class Change:
    """Removals that a configuration may express together.

    Attributes:
        removals: what is removed.
        removed: modules that are gone then.
        block: the block that becomes one of another class, if any.
    """

    removals: tuple[Removal, ...]
    removed: tuple[str, ...]
    block: str = ""


@dataclass(frozen=True)
class NativeForm:
    """How a network's own class expresses removals, by the names of the network before them.

    Attributes:
        config: builds what is left, but for `rest`.
        removed: modules that are gone; later ones of their list move up.
        blocks: blocks that become ones of another class.
        rest: the other removals, by their new names. Their modules have stand-ins.
    """

    config: Config
    removed: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    rest: tuple[Removal, ...] = ()

    def new_name(self, name: str) -> str | None:
        """How a module or a weight is called now; None if it is gone."""
        return new_name(name, self.removed)


def native_form(
    network: Any, added: Sequence[Removal], accepts: Callable[[NativeForm], bool] = lambda _: True
) -> NativeForm:
    """Expresses as many removals as possible in the configuration of a network's class.

    Args:
        network: what the removals are for; it may have stand-ins from an earlier pruning.
        added: what shall be removed.
        accepts: whether to go on with a form.
    """
    stand_ins = _stand_ins(network, added)
    removals = [*stand_ins, *added]
    shapes = {name: weight.shape for name, weight in network.state_dict().items()}
    form = NativeForm(_explicit(network))
    expressed: set[str] = set()
    for change, configurations in _changes(network, removals):
        names = {removal.operator for removal in change.removals}
        if not expressed.isdisjoint(names):
            continue
        removed = (*form.removed, *change.removed)
        blocks = (*form.blocks, *([change.block] if change.block else []))
        left = {new_name(name, removed): shape for name, shape in shapes.items()}
        left.pop(None, None)
        moved = _moved(stand_ins, removed)
        fitting = (config for config in configurations(form.config) if _shapes(network, config, moved) == left)
        if (config := next(fitting, None)) is not None:
            wider = NativeForm(config, removed, blocks, _moved(removals, removed))
            if accepts(wider):
                form = wider
                expressed |= names
    return form if form.removed else stand_in_form(network, added)


def stand_in_form(network: Any, removals: Sequence[Removal]) -> NativeForm:
    """Stand-ins for all that is removed."""
    return NativeForm(plain_config(network), rest=(*_stand_ins(network, removals), *removals))


def native_groups(network: nn.Module, removals: Sequence[Removal]) -> tuple[tuple[str, ...], ...]:
    """The groups of operators that a network's class can express the removal of, each alone or with other groups.

    Most groups are one block. All attentions of a block of a U-Net are a group: the block then has another type.
    """
    groups: list[tuple[str, ...]] = []
    together: dict[str, list[Removal]] = defaultdict(list)
    modules = dict(network.named_modules())
    for removal in removals:
        path = removal.operator.rpartition(".")[0]
        if not path or isinstance(modules.get(path), nn.ModuleList):
            if native_form(network, [removal]).removed:
                groups.append((removal.operator,))
            elif path:
                together[path].append(removal)
    complete = [items for path, items in together.items() if len(items) == len(list(modules[path].children()))]
    for items in complete:
        if native_form(network, items).removed:
            groups.append(tuple(removal.operator for removal in items))
    return tuple(groups)


def native_operators(network: nn.Module, operators: Sequence[Operator]) -> tuple[Operator, ...]:
    """The operators whose removal a network's class can express, alone or in a group."""
    removals = [candidate.removal for operator in operators for candidate in operator.candidates]
    names = {name for group in native_groups(network, removals) for name in group}
    return tuple(operator for operator in operators if operator.name in names)


def _changes(network: nn.Module, removals: Sequence[Removal]) -> Iterator[tuple[Change, Configurations]]:
    """Changes to try, those of inner lists first, each with the configurations that may express it."""
    plain = [removal for removal in removals if removal.modification == "identity" and not removal.cascaded]
    whole = {removal.operator: removal for removal in plain}
    parents = {name.rpartition(".")[0] for name in whole}
    lists = {
        name: part for name, part in network.named_modules() if name in parents and isinstance(part, nn.ModuleList)
    }
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
    whole: Mapping[str, Removal], removed: tuple[str, ...], length: int, count: int
) -> tuple[Change, Configurations]:
    """Lists of some length without some of their modules, as many of each list."""
    paths = dict.fromkeys(name.rpartition(".")[0] for name in removed)
    kept = [index for path in paths for index in range(length) if f"{path}.{index}" not in removed]

    def configurations(config: Config) -> Iterator[Config]:
        for name in config:
            for value in _replaced(config[name], length, length - count):
                yield {**config, name: value}
                for places in config:  # which blocks have something special
                    if _are_places(config[places], length) and places != name:
                        moved = [kept.index(place) for place in config[places] if place in kept]
                        yield {**config, name: value, places: moved}

    return Change(tuple(whole[name] for name in removed), removed), configurations


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


def base_class(network: Any) -> Any:
    """The class of diffusers that a network has, or had before it was pruned."""
    return getattr(network, "unpruned_class", type(network))


def plain_config(network: Any) -> Config:
    """The configuration of a network for its class of diffusers, without what is noted beside it."""
    noted = ("removals", "auto_map")
    return {name: value for name, value in network.config.items() if not name.startswith("_") and name not in noted}


def _explicit(network: Any) -> Config:
    """The same configuration with a number of transformer layers for each block, where a U-Net has such numbers."""
    config = plain_config(network)
    if COUNTS in config and REVERSE_COUNTS in config:
        for name, blocks in ((COUNTS, network.down_blocks), (REVERSE_COUNTS, network.up_blocks)):
            config[name] = [_layers(block) or 1 for block in blocks]
    return config


def _layers(block: Any) -> list[int]:
    """The number of transformer layers in each attention of a block."""
    attentions = getattr(block, "attentions", None) or ()
    return [len(layers.transformer_blocks) for layers in attentions if hasattr(layers, "transformer_blocks")]


def built(base: Any, config: Config) -> nn.Module:
    """A network of a class on the meta device."""
    with torch.device("meta"), without_chatter():
        network = base.from_config(config)
    assert isinstance(network, nn.Module)
    return network.eval()


def _shapes(network: Any, config: Config, stand_ins: Sequence[Removal]) -> dict[str, torch.Size] | None:
    """The shapes of the weights that a configuration has, beside stand-ins; None if it cannot be built."""
    return _shapes_of(base_class(network), json.dumps(config, default=str), tuple(stand_ins))


@functools.lru_cache(maxsize=256)
def _shapes_of(base: Any, config: str, stand_ins: tuple[Removal, ...]) -> dict[str, torch.Size] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes that no network has, such as a kernel of 0
            other = built(base, json.loads(config))
        remove_(other, [removal.model_dump() for removal in stand_ins])
    except Exception:  # noqa: BLE001  (a class refuses a configuration in its own way)
        return None
    return {name: weight.shape for name, weight in other.state_dict().items()}


def _stand_ins(network: Any, removals: Sequence[Removal]) -> list[Removal]:
    """Earlier removals of a network, but those inside what is removed now."""
    gone = {removal.operator for removal in removals}
    earlier = [Removal(**entry) for entry in network.config.get("removals", ())]
    return [removal for removal in earlier if gone.isdisjoint(ancestors(removal.operator))]


def _moved(removals: Sequence[Removal], removed: Sequence[str]) -> tuple[Removal, ...]:
    """Removals of what is still there, by the new names of their modules."""
    moved = []
    for removal in removals:
        if (operator := new_name(removal.operator, removed)) is not None:
            cascaded = [new_name(name, removed) for name in removal.cascaded]
            moved.append(removal.replace(operator=operator, cascaded=tuple(name for name in cascaded if name)))
    return tuple(moved)
