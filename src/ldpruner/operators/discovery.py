"""The operators of a denoiser: what can be removed from it, and what goes away with each.

Nothing here knows an architecture by name. One call is watched (see `dataflow`), and three rules read it:
an operator whose outputs have the shapes of its inputs can become the identity; one whose output is only added
to what it was computed from is a residual branch and becomes zero; a block that changes its width can be cut down to
the projection on its own shortcut.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias

from diffusers import DiffusionPipeline
from pydantic import Field
from torch import nn

from ldpruner.errors import OperatorNotFound
from ldpruner.operators.module_types import module_type
from ldpruner.operators.tracing import Call, Dataflow, Selector, trace
from ldpruner.pipelines.denoiser import Denoiser, find_denoiser
from ldpruner.pipelines.running import Arguments
from ldpruner.values import Value

ModificationName: TypeAlias = Literal["identity", "zero", "shortcut"]
OutputSource: TypeAlias = int | str | tuple[int | str | None, ...]

# By name: a folder that was opened with remote code brings classes of its own.
STAND_INS = ("Identity", "Zero", "Shortcut")


class Removal(Value):
    """One modification of one operator, and all that a replay needs to know of it.

    Attributes:
        operator: the dotted name of the submodule.
        modification: what stands in for it.
        source: for each output the input (position or name) that it repeats or takes its shape from, a tuple
            where the operator returned one, None for None; for `shortcut` the name of the projection that stays.
        cascaded: the operators that fed only this one and go with it, such as the norm in front of an attention.
    """

    operator: str
    modification: ModificationName
    source: OutputSource = 0
    cascaded: tuple[str, ...] = ()

    @property
    def removal(self) -> "Removal":
        """This alone, without what is known beside it."""
        return Removal(**self.model_dump(include=set(Removal.model_fields)))


class Candidate(Removal):
    """A removal that has not been chosen yet: what it would take away.

    Attributes:
        leaves: the names of the leaf modules that would be gone; two candidates that share one exclude
            each other.
        parameters: how many weights would be gone.
        macs: multiply-accumulates saved in one denoiser call on one sample.
    """

    leaves: tuple[str, ...]
    parameters: int
    macs: int


class Operator(Value):
    """A submodule of a denoiser that can be modified on its own.

    Attributes:
        component: the denoiser's name in the pipeline.
        name: the dotted name in the denoiser.
        kind: convolution, linear, normalisation, activation, attention, resnet, feed_forward, ...
        calls: how many times one denoiser call runs it.
        input_shape, output_shape: of its first tensors in the first call, with the batch of that call.
        parameters: how many weights it has.
        macs: its multiply-accumulates in one denoiser call on one sample, attention products counted.
        candidates: the modifications that it allows.
    """

    component: str
    name: str = Field(serialization_alias="operator")
    kind: str
    calls: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    candidates: tuple[Candidate, ...]

    @property
    def modifications(self) -> tuple[ModificationName, ...]:
        return tuple(candidate.modification for candidate in self.candidates)


def find_operators(
    pipeline: DiffusionPipeline,
    component: str | None = None,
    call: Arguments | None = None,
    *,
    ignore: Sequence[str] = (),
    targets: Sequence[str] = (),
) -> tuple[Operator, ...]:
    """Lists what can be removed from a pipeline's denoiser, in the order in which it runs.

    One denoiser call is watched on the meta device: no weights are needed or changed.

    Args:
        pipeline: any diffusers pipeline.
        component: which network, for pipelines with more than one denoiser.
        call: further arguments that the pipeline's call needs.
        ignore, targets: see `matching`.

    Raises:
        DenoiserNotFound: the pipeline cannot be run or has no denoiser.
        OperatorNotFound: a pattern matches no operator.
    """
    return matching(operators_of(find_denoiser(pipeline, component, call)), ignore=ignore, targets=targets)


def matching(
    operators: Sequence[Operator], *, ignore: Sequence[str] = (), targets: Sequence[str] = ()
) -> tuple[Operator, ...]:
    """The operators that glob patterns of their dotted names leave; `*` matches dots too.

    Args:
        operators: which to choose from.
        ignore: leaves these out. An operator that holds one may still be removed as a whole: to protect a block, name
            it too (`mid_block*`).
        targets: keeps only these; empty keeps all.

    Raises:
        OperatorNotFound: a pattern matches no operator.
    """
    names = [operator.name for operator in operators]
    for pattern in (*ignore, *targets):
        if not _matches(pattern, names):
            raise OperatorNotFound(pattern, names)
    ignored = {name for pattern in ignore for name in _matches(pattern, names)}
    targeted = {name for pattern in targets for name in _matches(pattern, names)} if targets else set(names)
    return tuple(operator for operator in operators if operator.name in targeted - ignored)


def _matches(pattern: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if fnmatchcase(name, pattern)]


def operators_of(denoiser: Denoiser, flow: Dataflow | None = None) -> tuple[Operator, ...]:
    """The operators of a denoiser whose call was recorded; `flow` is its trace, if it was traced already."""
    return _Search(denoiser, flow or trace(denoiser)).operators()


def denoiser_macs(denoiser: Denoiser, flow: Dataflow | None = None) -> int:
    """Multiply-accumulates of one denoiser call on one sample (one row of its batch), attention products counted."""
    flow = flow or trace(denoiser)
    return flow.macs(range(len(flow.nodes))) // denoiser.rows


class _Search:
    """Applies the rules to one recorded call."""

    def __init__(self, denoiser: Denoiser, flow: Dataflow) -> None:
        self.denoiser, self.flow = denoiser, flow
        self.modules = dict(denoiser.module.named_modules())
        self.leaves = {name for name, module in self.modules.items() if not any(module.children())}
        self.nodes = {name: flow.nodes_of(name) for name in flow.calls}
        self.rows = denoiser.rows
        self.parts = _filed(flow.calls)
        self.leaves_of = _filed(self.leaves)
        self.seen: set[frozenset[str]] = set()

    def operators(self) -> tuple[Operator, ...]:
        outermost_first = sorted(self.flow.calls, key=lambda name: name.count("."))
        found = {name: self._operator(name) for name in outermost_first if self._is_candidate(name)}
        return tuple(found[name] for name in self.flow.calls if name in found and found[name].candidates)

    def _is_candidate(self, name: str) -> bool:
        computes = any(self.flow.nodes[node].operation != "outside" for node in self.nodes[name])
        return computes and type(self.modules[name]).__name__ not in STAND_INS and not self._is_entered_elsewhere(name)

    def _is_entered_elsewhere(self, name: str) -> bool:
        """Whether something reaches past the module and calls a part of it alone, which a stand-in would not have."""
        return any(not self.nodes[part] <= self.nodes[name] for part in self.parts[name])

    def _operator(self, name: str) -> Operator:
        calls = self.flow.calls[name]
        outputs = calls[0].results
        return Operator(
            component=self.denoiser.component,
            name=name,
            kind=module_type(self.modules[name]),
            calls=len(calls),
            input_shape=next((value.shape for value in calls[0].inputs.values()), ()),
            output_shape=outputs[0].shape if outputs else (),
            parameters=_parameters(self.modules[name]),
            macs=self.flow.macs(self.nodes[name]) // self.rows,
            candidates=tuple(self._candidates(name)),
        )

    def _candidates(self, name: str) -> Iterator[Candidate]:
        source = self._output_source(name)
        if source is None:
            yield from self._once(name, "shortcut", self._shortcut(name))
            return
        if self._is_residual_branch(name):
            zeros = list(self._once(name, "zero", source))
            yield from zeros
            if zeros:
                return
        yield from self._once(name, "identity", source)

    def _once(self, name: str, modification: ModificationName, source: OutputSource | None) -> Iterator[Candidate]:
        """The candidate, unless an outer operator's takes away exactly the same."""
        if source is None:
            return
        candidate = self._candidate(name, modification, source)
        key = frozenset(self._dead_leaves(self._dead(name, modification, source)))
        if key and key not in self.seen:
            self.seen.add(key)
            yield candidate

    def _candidate(self, name: str, modification: ModificationName, source: OutputSource) -> Candidate:
        dead = self._dead(name, modification, source)
        inside = self.nodes[name]
        cascaded = self._dead_modules(name, dead)
        gone = {node for node in dead if node in inside}.union(*(self.nodes[other] for other in cascaded))
        # What is called from outside, too, so that nothing inside a removed operator is chosen besides.
        below = [leaf for one in (name, *cascaded) for leaf in self.leaves_of[one] if leaf != f"{name}.{source}"]
        kept = _parameters(self.modules[name].get_submodule(source)) if modification == "shortcut" else 0
        return Candidate(
            operator=name,
            modification=modification,
            source=source,
            cascaded=cascaded,
            leaves=tuple(dict.fromkeys([*self._dead_leaves(gone), *sorted(below)])),
            parameters=_parameters(self.modules[name], *(self.modules[other] for other in cascaded)) - kept,
            macs=self.flow.macs(gone) // self.rows,
        )

    def _dead_modules(self, name: str, dead: set[int]) -> tuple[str, ...]:
        """The outermost other modules that a removal leaves without a reader, and that can be the identity."""
        owners = {self.flow.owners[node] for node in dead - self.nodes[name]}
        around = {part for owner in owners for part in _ancestors(owner) if self._is_removable(part, dead)}
        swept: list[str] = []
        for other in sorted(around, key=lambda part: part.count(".")):
            if not any(_nested(other, one) for one in (name, *swept)):
                swept.append(other)
        return tuple(sorted(swept, key=lambda part: self.flow.calls[part][0].start))

    def _is_removable(self, name: str, dead: set[int]) -> bool:
        """Whether a module is dead and the identity of it is its first tensor."""
        nodes = self.nodes.get(name)
        if not nodes or not nodes <= dead or not self._is_candidate(name):
            return False
        source = self._output_source(name)
        return source is not None and all(source == next(iter(call.inputs)) for call in self.flow.calls[name])

    def _dead(self, name: str, modification: ModificationName, source: OutputSource) -> set[int]:
        """The nodes that nothing needs once an operator is modified."""
        removed, kept = set(self.nodes[name]), set[int]()
        for call in self.flow.calls[name]:
            if modification == "identity":
                kept |= {call.inputs[selector].node for selector in _selectors(source)}
        if modification == "shortcut":
            projection = f"{name}.{source}"
            removed -= self.nodes[projection]
            kept |= {value.node for call in self.flow.calls[projection] for value in call.results}
        return self.flow.unread_without(removed, kept)

    def _dead_leaves(self, dead: set[int]) -> list[str]:
        owners = dict.fromkeys(self.flow.owners[node] for node in sorted(dead))
        return [name for name in owners if name in self.leaves and self.nodes[name] <= dead]

    def _output_source(self, name: str) -> OutputSource | None:
        """For each output the input that has its shape; None if there is none, or calls differ."""
        found = {self._source_of_call(call) for call in self.flow.calls[name]}
        return found.pop() if len(found) == 1 else None

    def _source_of_call(self, call: Call) -> OutputSource | None:
        selectors: list[Selector | None] = []
        for value in call.outputs:
            if value is None:
                selectors.append(None)
                continue
            same = {key: given for key, given in call.inputs.items() if given.shape == value.shape}
            if not same:
                return None
            source = self.flow.stream_source(value, same, call.start)
            selectors.append(source[0] if source is not None else next(iter(same)))
        if not call.results:
            return None
        return tuple(selectors) if call.returns_tuple else selectors[0]

    def _is_residual_branch(self, name: str) -> bool:
        return all(self._is_added_back(call) for call in self.flow.calls[name])

    def _is_added_back(self, call: Call) -> bool:
        """Whether every output that is read is only ever added to something that the inputs were computed from.

        A block that carries its input on is no branch, though the same may be added after it and after its neighbour.
        """
        is_read = False
        for value in call.results:
            source = self.flow.stream_source(value, call.inputs, call.start)
            if source is not None and source[1]:
                return False
            additions = self.flow.additions_of(value, call.end)
            if additions is None or not all(self._adds_ancestor(one, value.node, call) for one in additions):
                return False
            is_read = is_read or bool(additions)
        return is_read

    def _adds_ancestor(self, addition: int, value: int, call: Call) -> bool:
        sources = [given.node for given in call.inputs.values()]
        addends = self.flow.addends(addition, value)
        return any(self.flow.depends_on(source, addend) for addend in addends for source in sources)

    def _shortcut(self, name: str) -> str | None:
        """The child that projects the operator's own input to its output's width and is only added there."""
        (call, *more) = self.flow.calls[name]
        if more or len(call.results) != 1 or not call.inputs or call.returns_tuple:
            return None
        source, target = next(iter(call.inputs.values())), call.results[0]
        children: list[str] = [child for child, _ in self.modules[name].named_children()]
        for child in children:
            for inner in self.flow.calls.get(f"{name}.{child}", ()):
                given = list(inner.inputs.values())
                fits = [value.shape for value in inner.results] == [target.shape] and len(given) == 1
                if not fits or not self.flow.additions_of(inner.results[0], inner.end):
                    continue
                if self.flow.stream_source(given[0], {0: source}, call.start) is not None:
                    return child
        return None


def _filed(names: Iterable[str]) -> dict[str, list[str]]:
    """The names under each of their ancestors and themselves."""
    filed: dict[str, list[str]] = defaultdict(list)
    for name in names:
        for ancestor in _ancestors(name):
            filed[ancestor].append(name)
    return filed


def _ancestors(name: str) -> list[str]:
    """A module and the modules that hold it."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _nested(first: str, second: str) -> bool:
    """Whether one of two modules holds the other."""
    return f"{first}.".startswith(f"{second}.") or f"{second}.".startswith(f"{first}.")


def _selectors(source: OutputSource) -> list[Selector]:
    selectors = source if isinstance(source, tuple) else (source,)
    return [selector for selector in selectors if selector is not None]


def _parameters(*modules: nn.Module) -> int:
    weights: dict[int, Any] = {id(weight): weight for module in modules for weight in module.parameters()}
    return sum(weight.numel() for weight in weights.values())
