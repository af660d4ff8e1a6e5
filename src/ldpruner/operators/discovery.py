"""Finds the operators of a denoiser: what can be removed from it, and what goes away with each.

Nothing here knows an architecture by name. One call is traced, and three rules read the trace:

- An operator whose outputs have the shapes of its inputs can become the identity.
- An operator whose output is only added to what it was computed from is a residual branch; it becomes zero.
- A block that changes its width can be reduced to the projection on its own shortcut.

Where a residual branch is added decides how coarse an operator is: a block adds branches inside itself.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Literal, TypeAlias

from pydantic import Field

from ldpruner.operators.module_types import module_type
from ldpruner.operators.names import ancestors, as_tuple, by_ancestor, overlap
from ldpruner.operators.tracing import Call, Dataflow, Selector, trace
from ldpruner.pipelines.denoiser import Denoiser
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.values import Value

ModificationName: TypeAlias = Literal["identity", "zero", "shortcut"]
Granularity: TypeAlias = Literal["block", "branch", "leaf"]  # coarse to fine
OutputSource: TypeAlias = int | str | tuple[int | str | None, ...]

# By name: a folder that was opened with remote code has classes of its own.
STAND_INS = ("Identity", "Zero", "Shortcut")


class Removal(Value):
    """One modification of one operator, with all that a replay needs.

    Attributes:
        operator: the dotted name of the submodule.
        modification: what replaces it.
        source: for each output the input (position or name) that it repeats or takes its shape from; a tuple where the
            operator returns one; None for the output None; for `shortcut` the name of the projection that stays.
        cascaded: the operators that feed only this one and go with it, such as the norm in front of an attention.
    """

    operator: str
    modification: ModificationName
    source: OutputSource = 0
    cascaded: tuple[str, ...] = ()

    @property
    def removal(self) -> "Removal":
        """The removal alone, without the fields of a subclass."""
        return Removal(**self.model_dump(include=set(Removal.model_fields)))


class Candidate(Removal):
    """A removal that can be chosen, and what it would take away.

    Attributes:
        leaves: the names of the leaf modules that would be gone; candidates that share one exclude each other.
        parameters: how many weights would be gone.
        macs: multiply-accumulates saved in one denoiser call on one sample.
        granularity: `block` if it adds residual branches inside itself, `branch` if it is such a branch, else `leaf`.
    """

    leaves: tuple[str, ...]
    parameters: int
    macs: int
    granularity: Granularity = "leaf"


class Operator(Value):
    """A submodule of a denoiser that can be modified on its own.

    Attributes:
        component: the denoiser's name in the pipeline.
        name: the dotted name in the denoiser.
        module_type: convolution, linear, normalisation, activation, attention, resnet, feed_forward, ...
        calls: how often one denoiser call runs it.
        input_shape: of its first tensor in the first call, with the batch of that call.
        output_shape: of its first tensor there.
        parameters: how many weights it has.
        macs: its multiply-accumulates in one denoiser call on one sample, attention products included.
        candidates: the modifications that it allows.
    """

    component: str
    name: str = Field(serialization_alias="operator")
    module_type: str
    calls: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    candidates: tuple[Candidate, ...]

    @property
    def modifications(self) -> tuple[ModificationName, ...]:
        return tuple(candidate.modification for candidate in self.candidates)

    @property
    def granularity(self) -> Granularity:
        return self.candidates[0].granularity  # it has one candidate at least, and the same for all


def operators_of(denoiser: Denoiser, flow: Dataflow | None = None) -> tuple[Operator, ...]:
    """The operators of a denoiser whose call was recorded; `flow` is its trace, if known."""
    return _Search(denoiser, flow or trace(denoiser)).operators()


def denoiser_macs(denoiser: Denoiser, flow: Dataflow | None = None) -> int:
    """Multiply-accumulates of one denoiser call on one sample, attention products included."""
    flow = flow or trace(denoiser)
    return flow.macs(range(len(flow.nodes))) // denoiser.rows


class _Search:
    """Applies the rules to one traced call."""

    def __init__(self, denoiser: Denoiser, flow: Dataflow) -> None:
        self.denoiser, self.flow = denoiser, flow
        self.modules = dict(denoiser.module.named_modules())
        self.leaves = {name for name, module in self.modules.items() if not any(module.children())}
        self.nodes = {name: flow.nodes_of(name) for name in flow.calls}
        self.parts = by_ancestor(flow.calls)
        self.leaves_of = by_ancestor(self.leaves)
        self.seen: set[frozenset[str]] = set()

    def operators(self) -> tuple[Operator, ...]:
        outermost_first = sorted(self.flow.calls, key=lambda name: name.count("."))
        names = [name for name in outermost_first if self._is_removable(name)]
        operators = {name: self._operator(name) for name in names}
        return tuple(operators[name] for name in self.flow.calls if name in operators and operators[name].candidates)

    def _is_removable(self, name: str) -> bool:
        computes = any(self.flow.nodes[node].operation != "outside" for node in self.nodes[name])
        is_replacement = type(self.modules[name]).__name__ in STAND_INS
        return computes and not is_replacement and not self._is_entered_elsewhere(name)

    def _is_entered_elsewhere(self, name: str) -> bool:
        """Whether code outside the module calls a part of it, which a replacement would not have."""
        return any(not self.nodes[part] <= self.nodes[name] for part in self.parts[name])

    def _operator(self, name: str) -> Operator:
        calls = self.flow.calls[name]
        outputs = calls[0].results
        return Operator(
            component=self.denoiser.component,
            name=name,
            module_type=module_type(self.modules[name]),
            calls=len(calls),
            input_shape=next((value.shape for value in calls[0].inputs.values()), ()),
            output_shape=outputs[0].shape if outputs else (),
            parameters=count_parameters(self.modules[name]),
            macs=self.flow.macs(self.nodes[name]) // self.denoiser.rows,
            candidates=tuple(self._candidates(name)),
        )

    def _candidates(self, name: str) -> Iterator[Candidate]:
        """The first modification that takes away something that no outer operator's takes away exactly."""
        for modification, source in self._modifications(name):
            dead = self._dead_nodes(name, modification, source)
            key = frozenset(self._dead_leaves(dead))
            if key and key not in self.seen:
                self.seen.add(key)
                yield self._candidate(name, modification, source, dead)
                return

    def _modifications(self, name: str) -> Iterator[tuple[ModificationName, OutputSource]]:
        if (source := self._output_source(name)) is not None:
            if name in self._branches:
                yield "zero", source
            yield "identity", source
        elif (projection := self._shortcut(name)) is not None:
            yield "shortcut", projection

    def _candidate(self, name: str, modification: ModificationName, source: OutputSource, dead: set[int]) -> Candidate:
        inside = self.nodes[name]
        cascaded = self._dead_modules(name, dead)
        gone = {node for node in dead if node in inside}.union(*(self.nodes[module] for module in cascaded))
        projection = f"{name}.{source}"
        # Leaves that are called from outside count too: nothing inside a removed operator may be chosen as well.
        leaves = {leaf for module in (name, *cascaded) for leaf in self.leaves_of[module] if leaf != projection}
        kept = count_parameters(self.modules[projection]) if modification == "shortcut" else 0
        removed = [self.modules[module] for module in (name, *cascaded)]
        return Candidate(
            operator=name,
            modification=modification,
            source=source,
            cascaded=cascaded,
            leaves=tuple(dict.fromkeys([*self._dead_leaves(gone), *sorted(leaves)])),
            parameters=count_parameters(*removed) - kept,
            macs=self.flow.macs(gone) // self.denoiser.rows,
            granularity=self._granularity(name, modification),
        )

    def _granularity(self, name: str, modification: ModificationName) -> Granularity:
        inside = self.nodes[name]
        parts = (self._branches.get(part, set()) for part in self.parts[name] if part != name)
        if modification == "shortcut" or any(additions and additions <= inside for additions in parts):
            return "block"
        return "branch" if modification == "zero" else "leaf"

    @cached_property
    def _branches(self) -> dict[str, set[int]]:
        """The additions of each module whose outputs are only added to what they were computed from."""
        branches = {}
        for name, calls in self.flow.calls.items():
            if all(self._is_added_back(call) for call in calls):
                ends = [(output, call.end) for call in calls for output in call.results]
                branches[name] = {node for end in ends for node in self.flow.following_additions(*end) or ()}
        return branches

    def _dead_modules(self, name: str, dead: set[int]) -> tuple[str, ...]:
        """The outermost other modules that a removal leaves without a reader, and that can become the identity."""
        owners = {self.flow.owners[node] for node in dead - self.nodes[name]}
        candidates = {module for owner in owners for module in ancestors(owner) if self._can_cascade(module, dead)}
        outermost: list[str] = []
        for module in sorted(candidates, key=lambda module: module.count(".")):
            if not any(overlap(module, other) for other in (name, *outermost)):
                outermost.append(module)
        return tuple(sorted(outermost, key=lambda module: self.flow.calls[module][0].start))

    def _can_cascade(self, name: str, dead: set[int]) -> bool:
        """Whether a module is dead and its identity would return its first tensor."""
        nodes = self.nodes.get(name)
        if not nodes or not nodes <= dead or not self._is_removable(name):
            return False
        source = self._output_source(name)
        return source is not None and all(source == next(iter(call.inputs)) for call in self.flow.calls[name])

    def _dead_nodes(self, name: str, modification: ModificationName, source: OutputSource) -> set[int]:
        """The nodes that nothing needs once an operator is modified."""
        removed, kept = set(self.nodes[name]), set[int]()
        if modification == "identity":
            selectors = [selector for selector in as_tuple(source) if selector is not None]
            kept = {call.inputs[selector].node for call in self.flow.calls[name] for selector in selectors}
        if modification == "shortcut":
            projection = f"{name}.{source}"
            removed -= self.nodes[projection]
            kept = {value.node for call in self.flow.calls[projection] for value in call.results}
        return self.flow.dead_nodes(removed, kept)

    def _dead_leaves(self, dead: set[int]) -> list[str]:
        owners = dict.fromkeys(self.flow.owners[node] for node in sorted(dead))
        return [name for name in owners if name in self.leaves and self.nodes[name] <= dead]

    def _output_source(self, name: str) -> OutputSource | None:
        """For each output the input that has its shape; None if there is none, or the calls differ."""
        sources = {self._source_of_call(call) for call in self.flow.calls[name]}
        return sources.pop() if len(sources) == 1 else None

    def _source_of_call(self, call: Call) -> OutputSource | None:
        selectors: list[Selector | None] = []
        for output in call.outputs:
            if output is None:
                selectors.append(None)
                continue
            alike = {selector: value for selector, value in call.inputs.items() if value.shape == output.shape}
            if not alike:
                return None
            source = self.flow.stream_source(output, alike, call.start)
            selectors.append(source[0] if source is not None else next(iter(alike)))
        if not call.results:
            return None
        return tuple(selectors) if call.returns_tuple else selectors[0]

    def _is_added_back(self, call: Call) -> bool:
        """Whether outputs are only ever added to something that the inputs were computed from.

        A block that carries its input on is no branch, though the same may be added after it and after its neighbour.
        """
        is_read = False
        for output in call.results:
            source = self.flow.stream_source(output, call.inputs, call.start)
            if source is not None and source[1]:
                return False
            additions = self.flow.following_additions(output, call.end)
            if additions is None or not all(self._adds_ancestor(node, output.node, call) for node in additions):
                return False
            is_read = is_read or bool(additions)
        return is_read

    def _adds_ancestor(self, addition: int, output: int, call: Call) -> bool:
        addends = self.flow.addends(addition, output)
        inputs = [value.node for value in call.inputs.values()]
        return any(self.flow.depends_on(node, addend) for addend in addends for node in inputs)

    def _shortcut(self, name: str) -> str | None:
        """The child that projects the operator's input to the width of its output and is only added there."""
        (call, *further_calls) = self.flow.calls[name]
        if further_calls or len(call.results) != 1 or not call.inputs or call.returns_tuple:
            return None
        source, output = next(iter(call.inputs.values())), call.results[0]
        children: list[str] = [child for child, _ in self.modules[name].named_children()]
        for child in children:
            for inner in self.flow.calls.get(f"{name}.{child}", ()):
                inputs = list(inner.inputs.values())
                fits = [value.shape for value in inner.results] == [output.shape] and len(inputs) == 1
                if not fits or not self.flow.following_additions(inner.results[0], inner.end):
                    continue
                if self.flow.stream_source(inputs[0], {0: source}, call.start) is not None:
                    return child
        return None
