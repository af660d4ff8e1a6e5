"""What one call of a network computes, and what depends on what.

The network runs once on the meta device: shapes only, no memory, no arithmetic. Every tensor operation becomes
a node; every call of a submodule is the interval of nodes that ran inside it.
"""

import copy
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ldpruner.errors import DenoiserNotFound, one_line
from ldpruner.pipelines.denoiser import Denoiser
from ldpruner.pipelines.meta import shapes_only, to_meta
from ldpruner.pipelines.offload import without_hooks
from ldpruner.pipelines.running import uncompiled

Selector = int | str
ADDITIONS = {"add", "add_", "addcmul", "addcmul_"}
LINEAR = {"mm", "addmm"}
# What neither mixes elements nor adds anything: scaling, views, copies.
PASSING = {
    *("mul", "mul_", "div", "div_", "neg", "clone", "_to_copy", "contiguous", "alias", "detach"),
    *(
        "view",
        "_unsafe_view",
        "reshape",
        "permute",
        "transpose",
        "t",
        "expand",
        "unsqueeze",
        "squeeze",
    ),
    *("slice", "select", "split", "split_with_sizes", "chunk", "unbind", "part"),
}
# What reads only the shape of its input.
SHAPE_ONLY = {
    "zeros_like",
    "ones_like",
    "full_like",
    "empty_like",
    "rand_like",
    "randn_like",
    "new_zeros",
    "new_ones",
}


@dataclass(frozen=True)
class Node:
    """One tensor operation: what it is, the nodes that it reads, its multiply-accumulates."""

    operation: str
    inputs: tuple[int, ...] = ()
    macs: int = 0


@dataclass(frozen=True)
class Value:
    """A tensor that a module takes or gives: its shape and the node that made it."""

    shape: tuple[int, ...]
    node: int


@dataclass
class Call:
    """One call of a submodule: the nodes from `start` to before `end` ran inside it.

    `outputs` is empty where something else than tensors and None was returned.
    """

    module: str
    start: int
    inputs: dict[Selector, Value]
    end: int = 0
    outputs: tuple[Value | None, ...] = ()
    returns_tuple: bool = False

    @property
    def results(self) -> list[Value]:
        """The tensors among the outputs."""
        return [value for value in self.outputs if value is not None]

    @property
    def nodes(self) -> range:
        return range(self.start, self.end)


@dataclass
class Dataflow:
    """The record of one call.

    Attributes:
        nodes: the operations in the order in which they ran.
        calls: the calls of submodules by module name, each in the order in which they began.
        results: the nodes that made the network's own outputs.
        owners: for each node the innermost module that it ran in ("" for the network itself).
    """

    nodes: list[Node] = field(default_factory=list)
    calls: dict[str, list[Call]] = field(default_factory=dict)
    results: set[int] = field(default_factory=set)
    owners: list[str] = field(default_factory=list)
    readers: list[list[int]] = field(default_factory=list)

    def add(self, node: Node, owner: str) -> int:
        """Appends a node and returns its number."""
        number = len(self.nodes)
        self.nodes.append(node)
        self.owners.append(owner)
        self.readers.append([])
        for source in set(node.inputs):
            self.readers[source].append(number)
        return number

    def macs(self, nodes: Iterable[int]) -> int:
        """Multiply-accumulates of some nodes."""
        return sum(self.nodes[node].macs for node in nodes)

    def nodes_of(self, module: str) -> set[int]:
        """Every node that ran inside a module, in any of its calls."""
        return {node for call in self.calls.get(module, ()) for node in call.nodes}

    def unread_without(self, removed: Collection[int], kept: Collection[int]) -> set[int]:
        """The removed nodes and all that nothing reads any more once they are gone.

        Args:
            removed: the nodes taken away.
            kept: nodes that stay in use, because something else now reads them.
        """
        dead = set(removed)
        pending = [source for node in removed for source in self.nodes[node].inputs]
        while pending:
            node = pending.pop()
            if node in dead or node in kept or node in self.results:
                continue
            if all(reader in dead or self._is_unread(reader) for reader in self.readers[node]):
                dead |= {node, *self.readers[node]}
                pending.extend(self.nodes[node].inputs)
        return dead

    def _is_unread(self, node: int) -> bool:
        return not self.readers[node] and node not in self.results

    def additions_of(self, value: Value, end: int) -> list[int] | None:
        """The additions that read a value after node `end`, through scalings and views alone.

        Or through a concatenation and the linear map that follows it: parallel branches share their last projection.
        None when anything else reads it; empty when nothing does.
        """
        additions: list[int] = []
        pending = [(reader, False) for reader in self.readers[value.node] if reader >= end]
        if value.node in self.results:
            return None
        while pending:
            node, is_joined = pending.pop()
            operation, readers = self.nodes[node].operation, self.readers[node]
            if operation in ADDITIONS and not is_joined:
                additions.append(node)
            elif readers and operation in PASSING:
                pending.extend((reader, is_joined) for reader in readers)
            elif readers and (operation == "cat" or (is_joined and operation in LINEAR)):
                pending.extend((reader, operation == "cat") for reader in readers)
            else:
                return None
        return additions

    def depends_on(self, node: int, ancestor: int) -> bool:
        """Whether a node was computed from another."""
        pending, seen = [node], {node}
        while pending:
            current = pending.pop()
            if current == ancestor:
                return True
            fresh = [one for one in self.nodes[current].inputs if one >= ancestor and one not in seen]
            seen.update(fresh)
            pending.extend(fresh)
        return False

    def addends(self, addition: int, value: int) -> list[int]:
        """What an addition adds to a value: its other operands, and theirs where they are additions themselves."""
        found: list[int] = []
        pending = [one for one in self.nodes[addition].inputs if not self.depends_on(one, value)]
        while pending:
            node = pending.pop()
            found.append(node)
            if self.nodes[node].operation in ADDITIONS:
                pending.extend(self.nodes[node].inputs)
        return found

    def stream_source(
        self, value: Value, candidates: dict[Selector, Value], start: int
    ) -> tuple[Selector, bool] | None:
        """The candidate that a value carries on, through additions, scalings and views alone: `x` in `x + f(x)`.

        And whether something was added to it on the way.
        """
        by_node = {candidate.node: selector for selector, candidate in reversed(candidates.items())}
        pending, seen = [(value.node, False)], {(value.node, False)}
        while pending:
            node, is_added_to = pending.pop(0)
            if node in by_node:
                return by_node[node], is_added_to
            operation = self.nodes[node].operation
            if node >= start and operation in ADDITIONS | PASSING | {"cat"}:
                is_added_to = is_added_to or operation in ADDITIONS
                fresh = [(one, is_added_to) for one in self.nodes[node].inputs if (one, is_added_to) not in seen]
                seen.update(fresh)
                pending.extend(fresh)
        return None


def trace(denoiser: Denoiser) -> Dataflow:
    """Repeats the recorded call of a denoiser on the meta device and records what it computes.

    Raises:
        DenoiserNotFound: the network computes something that needs its weights.
    """
    network = _weightless_copy(denoiser.module)
    recorder = _Recorder()
    _watch(network, recorder)
    attention = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    arguments, options = to_meta((denoiser.arguments, denoiser.options))
    try:
        with torch.no_grad(), uncompiled(), attention, shapes_only(), recorder:
            result = network(*arguments, **options)
    except Exception as error:
        raise DenoiserNotFound(
            f"{denoiser.component} cannot be watched without its weights: {type(error).__name__}: {one_line(error)}"
        ) from error
    recorder.flow.results = {recorder.value(tensor).node for tensor in _tensors(result)}
    return recorder.flow


def _weightless_copy(network: nn.Module) -> nn.Module:
    """The network with its weights on the meta device. What it caches while it runs stays in the copy."""
    weights = {id(weight): nn.Parameter(_meta(weight), requires_grad=False) for weight in network.parameters()}
    buffers = {id(buffer): _meta(buffer) for buffer in network.buffers()}
    return copy.deepcopy(network, {**weights, **buffers, **without_hooks(network)})


def _meta(value: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(value, device="meta")


def _watch(network: nn.Module, recorder: "_Recorder") -> None:
    for name, module in network.named_modules():
        if name:
            module.register_forward_pre_hook(recorder.entering(name), with_kwargs=True)
            module.register_forward_hook(recorder.left, with_kwargs=True)


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


class _Recorder(TorchDispatchMode):
    """Builds a dataflow while tensors are computed. Tensors are kept alive, so that their ids stay theirs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flow = Dataflow()
        self._made: dict[int, int] = {}
        self._written: dict[int, int] = {}  # the last node that wrote into a storage, also through a view
        self._alive: list[torch.Tensor] = []
        self._open: list[Call] = []

    def value(self, tensor: torch.Tensor) -> Value:
        """The tensor's shape and maker; a tensor from outside gets a node of its own."""
        if id(tensor) not in self._made:
            self._set_maker(tensor, self.flow.add(Node("outside"), self._owner()))
        written = self._written.get(_storage(tensor), 0)
        return Value(tuple(tensor.shape), max(written, self._made[id(tensor)]))

    def _set_maker(self, tensor: torch.Tensor, node: int) -> None:
        self._made[id(tensor)] = node
        self._alive.append(tensor)

    def _owner(self) -> str:
        return self._open[-1].module if self._open else ""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        result = function(*args, **options)
        packet = function.overloadpacket
        count = flop_registry.get(packet)
        flops = count(*args, **options, out_val=result) if count else 0
        name = packet.__name__
        reads = [] if name in SHAPE_ONLY else _tensors((args, options))
        inputs = tuple(dict.fromkeys(self.value(tensor).node for tensor in reads))
        node = self.flow.add(Node(name, inputs, flops // 2), self._owner())
        results = _tensors(result)
        for tensor in results:
            # The parts of a split each get a node: who reads one part does not depend on the others.
            part = self.flow.add(Node("part", (node,)), self._owner()) if len(results) > 1 else node
            self._set_maker(tensor, part)
            if function._schema.is_mutable:
                self._written[_storage(tensor)] = part
        return result

    def entering(self, name: str) -> Any:
        """A hook that opens a call of the named module."""

        def enter(_: nn.Module, arguments: Any, options: Any) -> None:
            given = [*enumerate(arguments), *options.items()]
            inputs: dict[Selector, Value] = {
                key: self.value(value) for key, value in given if isinstance(value, torch.Tensor)
            }
            call = Call(name, len(self.flow.nodes), inputs)
            self.flow.calls.setdefault(name, []).append(call)
            self._open.append(call)

        return enter

    def left(self, _: nn.Module, __: Any, ___: Any, result: Any) -> None:
        """A hook that closes the call that was opened last."""
        call = self._open.pop()
        call.end = len(self.flow.nodes)
        call.returns_tuple = isinstance(result, tuple)
        parts = result if call.returns_tuple else (result,)
        if all(part is None or isinstance(part, torch.Tensor) for part in parts):
            call.outputs = tuple(None if part is None else self.value(part) for part in parts)


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
