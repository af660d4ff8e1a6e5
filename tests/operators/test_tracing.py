"""The trace of networks small enough to say by hand what it must hold."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ldpruner.errors import DenoiserNotFound, WeightsNeeded
from ldpruner.operators.discovery import Operator, operators_of
from ldpruner.operators.patching import modified
from ldpruner.operators.tracing import Dataflow, trace
from ldpruner.pipelines.denoiser import Denoiser


class Residual(nn.Module):
    """x + g * branch(norm(x)), as blocks of transformers do, and a gate that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.branch = nn.Linear(6, 6)
        self.gate = nn.Sigmoid()
        self.head = nn.Linear(6, 3)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        values = values + 0.5 * self.branch(self.norm(values))
        result = self.head(values * self.gate(values) + self.gate(values))
        assert isinstance(result, torch.Tensor)
        return result


class Shared(nn.Module):
    """A norm whose output two branches read, so that it goes with neither of them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        normed = self.norm(values)
        result = values + self.first(normed) + self.second(normed)
        assert isinstance(result, torch.Tensor)
        return result


class Unrelated(nn.Module):
    """Adds something that the input of the operator has nothing to do with: no residual."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)

    def forward(self, values: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
        result = self.first(values) + self.second(more)
        assert isinstance(result, torch.Tensor)
        return result


class InPlace(nn.Module):
    """A residual that is added in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.branch = nn.Linear(6, 6)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        stream = self.stem(values)
        stream += self.branch(stream)
        assert isinstance(stream, torch.Tensor)
        return stream


class Parallel(nn.Module):
    """Two branches side by side that share their last projection, as the single blocks of Flux do."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.together = nn.Linear(12, 6)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([self.first(values), self.second(values)], dim=-1)
        result = values + 0.5 * self.together(joined)
        assert isinstance(result, torch.Tensor)
        return result


class Sandwich(nn.Module):
    """A branch with a norm behind it, too, as Z-Image and Lumina have them."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.RMSNorm(6)
        self.branch = nn.Sequential(nn.Linear(6, 12), nn.SiLU(), nn.Linear(12, 6))
        self.behind = nn.RMSNorm(6)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        result = values + self.behind(self.branch(self.before(values)))
        assert isinstance(result, torch.Tensor)
        return result


class Guided(nn.Module):
    """Two blocks of a stream, the same tensor added after each, as a ControlNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([AddsBranch(), AddsBranch()])

    def forward(self, values: torch.Tensor, control: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            values = block(values) + control
        return values


class AddsBranch(nn.Module):
    """x + branch(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(6, 6)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values + self.branch(values)  # type: ignore[no-any-return]


class Partial(nn.Module):
    """A block that returns None beside its stream, and is called by name."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Linear(6, 6)

        def forward(self, context: torch.Tensor, values: torch.Tensor) -> tuple[None, torch.Tensor]:
            return None, values + self.branch(values) * context.mean()

    def __init__(self) -> None:
        super().__init__()
        self.block = self.Block()

    def forward(self, values: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        nothing, values = self.block(context=context, values=values)
        assert nothing is None
        return values


class Caching(nn.Module):
    """Keeps a table on the device that it was last asked for, as rotary embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(6, 6)
        self.table = torch.arange(6.0)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.table = self.table.to(values.device)
        return values + self.branch(values) * self.table  # type: ignore[no-any-return]


def denoiser(module: nn.Module, inputs: int = 1, rows: int = 2) -> Denoiser:
    return Denoiser("network", module.eval(), tuple(torch.ones(rows, 5, 6) for _ in range(inputs)), {})


def operators_by_name(module: nn.Module, inputs: int = 1) -> dict[str, Operator]:
    return {operator.name: operator for operator in operators_of(denoiser(module, inputs))}


def all_macs(flow: Dataflow) -> int:
    return flow.macs(range(len(flow.nodes)))


def test_macs_are_those_of_the_layers_and_of_torchs_counter() -> None:
    residual = denoiser(Residual())
    flow = trace(residual)
    assert all_macs(flow) == 2 * 5 * (6 * 6 + 6 * 3)
    assert flow.macs(flow.nodes_of("branch")) == 2 * 5 * 6 * 6
    with FlopCounterMode(display=False) as counter:
        residual()
    assert 2 * all_macs(flow) == counter.get_total_flops()


def test_calls_are_recorded_with_their_shapes() -> None:
    flow = trace(denoiser(Residual()))
    assert {name: len(calls) for name, calls in flow.calls.items()} == {"norm": 1, "branch": 1, "gate": 2, "head": 1}
    (call,) = flow.calls["head"]
    assert call.inputs[0].shape == (2, 5, 6)
    assert [value.shape for value in call.results] == [(2, 5, 3)]


def test_every_node_reads_only_earlier_ones() -> None:
    flow = trace(denoiser(Residual()))
    assert len(flow.nodes) == len(flow.owners) == len(flow.readers) > 5
    for number, node in enumerate(flow.nodes):
        assert all(source < number for source in node.inputs)
        assert all(number in flow.readers[source] for source in node.inputs)


def test_a_scaled_residual_branch_is_seen_and_takes_its_norm_along() -> None:
    (candidate,) = operators_by_name(Residual())["branch"].candidates
    assert (candidate.modification, candidate.cascaded) == ("zero", ("norm",))
    assert candidate.parameters == 6 * 6 + 6 + 2 * 6
    assert candidate.macs == 5 * 6 * 6  # one of the two rows


def test_an_operator_that_is_called_twice_counts_two_calls() -> None:
    assert operators_by_name(Residual())["gate"].calls == 2


def test_a_norm_that_another_branch_reads_stays() -> None:
    (candidate,) = operators_by_name(Shared())["first"].candidates
    assert (candidate.modification, candidate.cascaded) == ("zero", ())


def test_parallel_branches_are_both_residual() -> None:
    operators = operators_by_name(Shared())
    assert operators["first"].modifications == operators["second"].modifications == ("zero",)


def test_an_addition_of_something_else_makes_no_residual_branch() -> None:
    operators = operators_by_name(Unrelated(), inputs=2)
    assert [operator.modifications for operator in operators.values()] == [("identity",), ("identity",)]


def test_a_residual_that_is_added_in_place_is_seen() -> None:
    operators = operators_by_name(InPlace())
    assert operators["branch"].modifications == ("zero",)
    assert operators["stem"].modifications == ("identity",)


def test_tracing_changes_neither_the_network_nor_its_inputs() -> None:
    recorded = denoiser(InPlace())
    before: Any = recorded()
    modules = list(recorded.module.modules())
    trace(recorded)
    assert torch.equal(recorded(), before)
    assert torch.equal(recorded.arguments[0], torch.ones(2, 5, 6))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    assert not any(weight.is_meta for weight in recorded.module.parameters())


def test_parallel_branches_share_their_projection() -> None:
    operators = operators_by_name(Parallel())
    assert operators["first"].modifications == operators["second"].modifications == ("zero",)


def test_a_branch_in_front_of_a_removed_norm_goes_with_it() -> None:
    (candidate,) = operators_by_name(Sandwich())["behind"].candidates
    assert (candidate.modification, candidate.cascaded) == ("zero", ("before", "branch"))
    assert candidate.parameters == sum(weight.numel() for weight in Sandwich().parameters())


def test_a_block_that_carries_the_stream_is_no_branch() -> None:
    operators = operators_by_name(Guided(), inputs=2)
    assert [operators[f"blocks.{place}"].modifications for place in (0, 1)] == [("identity",), ("identity",)]


def test_none_among_the_outputs_stays_none() -> None:
    network = Partial()
    (candidate,) = operators_by_name(network, inputs=2)["block"].candidates
    assert (candidate.modification, candidate.source) == ("identity", (None, "values"))
    with modified(network, [candidate.removal]):
        values = torch.randn(2, 5, 6)
        assert torch.equal(network(values, torch.ones(3)), values)


def test_what_a_network_caches_while_it_is_traced_stays_in_the_copy() -> None:
    network = Caching()
    assert operators_by_name(network)["branch"].modifications
    assert network.table.device.type == "cpu"
    assert network(torch.ones(2, 5, 6)).isfinite().all()


class Selecting(nn.Module):
    """Looks for the rows that a mask selects; caches a table."""

    table: torch.Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.dropout, self.heads = nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 6)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.table = torch.ones(6)
        self.register_buffer("angles", torch.ones(6), persistent=False)
        rows = values[values[..., 0] > 0]
        rows = rows + self.dropout(self.branch(rows))
        queries = self.heads(rows)[None, None]
        attended: torch.Tensor = nn.functional.scaled_dot_product_attention(queries, queries, queries)
        return attended[0, 0]


def test_a_network_that_needs_values_is_traced_with_its_weights_and_restored() -> None:
    network, values = Selecting().train(), torch.randn(2, 5, 6)
    values[..., 0] = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    flow = trace(Denoiser("network", network, (values,), {}))
    assert flow.calls["branch"][0].results[0].shape == (6, 6)  # the rows that the mask selects
    assert flow.macs(flow.nodes_of("branch")) == 6 * 6 * 6
    assert flow.macs(range(len(flow.nodes))) == 2 * 6 * 6 * 6 + 2 * 6 * 6 * 6  # two linear layers, two products
    assert network.training
    assert network.table is None
    assert not dict(network.named_buffers())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_the_trace_on_the_meta_device_and_with_the_weights_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Guided()
    expected = trace(denoiser(network, inputs=2))

    def unavailable(_: nn.Module) -> nn.Module:
        raise RuntimeError

    monkeypatch.setattr("ldpruner.operators.tracing._meta_copy", unavailable)
    assert trace(denoiser(network, inputs=2)) == expected


def test_without_weights_a_mask_selects_everything() -> None:
    flow = trace(Denoiser("network", Selecting().to("meta"), (torch.empty(2, 5, 6, device="meta"),), {}))
    assert flow.calls["branch"][0].results[0].shape == (10, 6)


def test_a_network_that_needs_its_weights_and_has_none_is_refused_in_one_line() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(1, 1, device="meta")

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            raise ValueError("needs a\nvalue")

    with pytest.raises(
        WeightsNeeded, match=r"^network \(Branching\) .*its weights \(ValueError: needs a value\)"
    ) as caught:
        trace(denoiser(Branching()))
    assert "\n" not in str(caught.value)


def test_a_call_that_cannot_be_repeated_is_refused_in_one_line() -> None:
    class Branching(nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            raise ValueError("needs a\nvalue")

    with pytest.raises(
        DenoiserNotFound, match=r"^network \(Branching\) cannot repeat its call: ValueError: needs a value$"
    ):
        trace(denoiser(Branching()))
