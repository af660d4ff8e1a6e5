"""Records what one call of a network computes, and what depends on what.

The network runs once on the meta device: shapes only, no memory, no arithmetic. Every tensor operation becomes a node.
Every call of a submodule is the interval of nodes that ran inside it.
"""

import contextlib
import copy
import weakref
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ldpruner.errors import DenoiserNotFound, WeightsNeeded, one_line
from ldpruner.pipelines.denoiser import Denoiser, copied
from ldpruner.pipelines.meta import shapes_only, to_meta
from ldpruner.pipelines.offload import hook_placeholders, is_offloaded
from ldpruner.pipelines.running import force_eager
from ldpruner.pipelines.state import evaluation_mode, outside_pipeline, without_caches

Selector = int | str
ADDITIONS = {"add", "add_", "addcmul", "addcmul_"}
LINEAR = {"mm", "addmm"}
# Operations that neither mix elements nor add anything: scalings, views, copies.
PASSING = {
    *("mul", "mul_", "div", "div_", "neg", "clone", "_to_copy", "contiguous", "alias", "detach"),
    *("view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "unsqueeze", "squeeze"),
    *("slice", "select", "split", "split_with_sizes", "chunk", "unbind", "part"),
}
# Operations that read only the shape of their input.
SHAPE_ONLY = {
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "new_zeros", "new_ones")
}
# Operations with the same inputs and as many multiply-accumulates as one that `torch.utils.flop_counter` knows.
ALIKE = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: torch.ops.aten._scaled_dot_product_flash_attention,
}


@dataclass(frozen=True)
class Node:
    """One tensor operation: its name, the nodes that it reads, its multiply-accumulates."""

    operation: str
    inputs: tuple[int, ...] = ()
    macs: int = 0


@dataclass(frozen=True)
class Value:
    """An input or output tensor of a module: its shape and the node that made it."""

    shape: tuple[int, ...]
    node: int


@dataclass
class Call:
    """One call of a submodule: the nodes from `start` to before `end` ran inside it.

    `outputs` is empty where the module returned anything but tensors and None.
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
        readers: for each node the nodes that read it.
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
        """All nodes that ran inside a module, in any of its calls."""
        return {node for call in self.calls.get(module, ()) for node in call.nodes}

    def dead_nodes(self, removed: Collection[int], kept: Collection[int]) -> set[int]:
        """The removed nodes, and all nodes that nothing reads once these are gone.

        Args:
            removed: nodes that are taken away.
            kept: nodes that stay in use, because a replacement reads them.
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

    def following_additions(self, value: Value, end: int) -> list[int] | None:
        """The additions from node `end` on that a value reaches through scalings and views alone.

        A concatenation and the linear map after it may lie between: parallel branches share their last projection.
        None if anything else reads the value; empty if nothing does.
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
            sources = [source for source in self.nodes[current].inputs if source >= ancestor and source not in seen]
            seen.update(sources)
            pending.extend(sources)
        return False

    def addends(self, addition: int, value: int) -> list[int]:
        """What an addition adds to a value: its other operands, and theirs where they are additions themselves."""
        addends: list[int] = []
        pending = [source for source in self.nodes[addition].inputs if not self.depends_on(source, value)]
        while pending:
            node = pending.pop()
            addends.append(node)
            if self.nodes[node].operation in ADDITIONS:
                pending.extend(self.nodes[node].inputs)
        return addends

    def stream_source(
        self, value: Value, candidates: dict[Selector, Value], start: int
    ) -> tuple[Selector, bool] | None:
        """Finds the candidate that a value carries on through additions, scalings and views: `x` in `x + f(x)`.

        Returns:
            The candidate's selector and whether something was added on the way; None if there is no such candidate.
        """
        selectors = {candidate.node: selector for selector, candidate in reversed(candidates.items())}
        pending, seen = [(value.node, False)], {(value.node, False)}
        while pending:
            node, is_added_to = pending.pop(0)
            if node in selectors:
                return selectors[node], is_added_to
            operation = self.nodes[node].operation
            if node >= start and operation in ADDITIONS | PASSING | {"cat"}:
                is_added_to = is_added_to or operation in ADDITIONS
                states = [(source, is_added_to) for source in self.nodes[node].inputs]
                states = [state for state in states if state not in seen]
                seen.update(states)
                pending.extend(states)
        return None


def trace(denoiser: Denoiser) -> Dataflow:
    """Repeats the recorded call of a denoiser on the meta device and records what it computes.

    Where that needs values, such as those of a mask, the call runs on the network itself: it takes as long as a call
    does, and as much memory. Without weights, masks select everything, so that MACs are upper bounds.

    Raises:
        WeightsNeeded: the network has no weights and computes something that needs them.
        DenoiserNotFound: the network cannot repeat its call.
    """
    name = f"{denoiser.component} ({type(denoiser.module).__name__})"
    has_weights = is_offloaded(denoiser.module) or not any(weight.is_meta for weight in denoiser.module.parameters())
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), shapes_only(masks=not has_weights):
            network = _meta_copy(denoiser.module).eval()
            return _record(network, *to_meta((denoiser.arguments, denoiser.options)))
    except Exception as error:
        if not has_weights:
            raise WeightsNeeded(
                f"{name} computes something that needs its weights ({one_line(error)}); open the pipeline with them"
            ) from error
    try:
        with evaluation_mode(denoiser.module), without_caches(denoiser.module):
            return _record(denoiser.module, *copied((denoiser.arguments, denoiser.options)))
    except Exception as error:
        raise DenoiserNotFound(f"{name} cannot repeat its call: {one_line(error)}") from error


def _record(network: nn.Module, args: Any, kwargs: Any) -> Dataflow:
    recorder = _Recorder()
    with contextlib.ExitStack() as stack:
        for name, module in network.named_modules():
            if name:
                opened = module.register_forward_pre_hook(recorder.open_call(name), with_kwargs=True)
                stack.callback(opened.remove)
                stack.callback(module.register_forward_hook(recorder.close_call, with_kwargs=True).remove)
        with torch.no_grad(), force_eager(), outside_pipeline(network), recorder:
            output = network(*args, **kwargs)
    recorder.flow.results = {recorder.value(tensor).node for tensor in _tensors(output)}
    return recorder.flow


def _meta_copy(network: nn.Module) -> nn.Module:
    """The network with its weights on the meta device. What it caches while it runs stays in the copy."""
    weights = {id(weight): nn.Parameter(_meta(weight), requires_grad=False) for weight in network.parameters()}
    buffers = {id(buffer): _meta(buffer) for buffer in network.buffers()}
    return copy.deepcopy(network, {**weights, **buffers, **hook_placeholders(network)})


def _meta(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, device="meta")


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class _Recorder(TorchDispatchMode):
    """Builds a dataflow while tensors are computed. It keeps none of them alive: a network's would fill the memory."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flow = Dataflow()
        self._makers: dict[int, tuple[weakref.ref[torch.Tensor], int]] = {}  # by the id of the tensor
        # The last node that wrote into a storage, also through a view. A new storage in the place of a freed one does
        # no harm: its tensors were made later.
        self._writers: dict[int, int] = {}
        self._open: list[Call] = []

    def value(self, tensor: torch.Tensor) -> Value:
        """The tensor's shape and maker; a tensor from outside gets a node of its own."""
        reference, maker = self._makers.get(id(tensor), (None, 0))
        if reference is None or reference() is not tensor:  # an earlier tensor had the id
            maker = self.flow.add(Node("outside"), self._owner())
            self._set_maker(tensor, maker)
        return Value(tuple(tensor.shape), max(self._writers.get(_storage(tensor), 0), maker))

    def _set_maker(self, tensor: torch.Tensor, node: int) -> None:
        self._makers[id(tensor)] = weakref.ref(tensor), node

    def _owner(self) -> str:
        return self._open[-1].module if self._open else ""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        output = function(*args, **options)
        packet = getattr(function, "overloadpacket", function)  # FlexAttention has none
        count_flops = flop_registry.get(ALIKE.get(packet, packet))
        flops = count_flops(*args, **options, out_val=output) if count_flops else 0
        name = packet.__name__
        reads = [] if name in SHAPE_ONLY else _tensors((args, options))
        inputs = tuple(dict.fromkeys(self.value(tensor).node for tensor in reads))
        node = self.flow.add(Node(name, inputs, flops // 2), self._owner())
        tensors, is_mutable = _tensors(output), packet is not function and function._schema.is_mutable
        for tensor in tensors:
            # Each part of a split gets a node: a reader of one part does not depend on the others.
            part = self.flow.add(Node("part", (node,)), self._owner()) if len(tensors) > 1 else node
            self._set_maker(tensor, part)
            if is_mutable:
                self._writers[_storage(tensor)] = part
        return output

    def open_call(self, name: str) -> Any:
        """A hook that opens a call of the named module."""

        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            arguments = [*enumerate(args), *kwargs.items()]
            inputs: dict[Selector, Value] = {
                selector: self.value(argument)
                for selector, argument in arguments
                if isinstance(argument, torch.Tensor)
            }
            call = Call(name, len(self.flow.nodes), inputs)
            self.flow.calls.setdefault(name, []).append(call)
            self._open.append(call)

        return enter

    def close_call(self, _: nn.Module, __: Any, ___: Any, output: Any) -> None:
        """A hook that closes the call that was opened last."""
        call = self._open.pop()
        call.end = len(self.flow.nodes)
        call.returns_tuple = isinstance(output, tuple)
        parts = output if call.returns_tuple else (output,)
        if all(part is None or isinstance(part, torch.Tensor) for part in parts):
            call.outputs = tuple(None if part is None else self.value(part) for part in parts)
