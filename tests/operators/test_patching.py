"""A modification does what its name says, and is undone exactly."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from ldpruner.errors import LdPrunerError, OperatorNotFound, PlanMismatch
from ldpruner.operators.choosing import find_operators
from ldpruner.operators.discovery import Operator, Removal
from ldpruner.operators.patching import check_removals, modified, removed_parameters
from ldpruner.pipelines.denoiser import Denoiser, find_denoiser


def output_with_hook(denoiser: Denoiser, name: str, hook: Callable[[nn.Module, Any, Any], Any]) -> torch.Tensor:
    """The denoiser's output while a hook replaces the output of one submodule, which itself still runs."""
    handle = denoiser.module.get_submodule(name).register_forward_hook(hook)
    try:
        return output(denoiser)
    finally:
        handle.remove()


def output(denoiser: Denoiser) -> torch.Tensor:
    result = denoiser()
    sample = result[0] if isinstance(result, tuple) else result.sample
    assert isinstance(sample, torch.Tensor)
    return sample


@pytest.mark.parametrize("fixture", ["tiny", "tiny_text", "tiny_transformer"])
def test_a_removal_takes_the_parameters_that_its_candidate_says(fixture: str, request: pytest.FixtureRequest) -> None:
    pipeline = request.getfixturevalue(fixture)
    network = find_denoiser(pipeline).module
    candidates = [candidate for operator in find_operators(pipeline) for candidate in operator.candidates]
    assert [removed_parameters(network, candidate) for candidate in candidates] == [
        candidate.parameters for candidate in candidates
    ]


def output_modified(denoiser: Denoiser, operator: Operator) -> torch.Tensor:
    (candidate,) = operator.candidates
    with modified(denoiser.module, [candidate.removal]):
        return output(denoiser)


def operators_with(pipeline: DiffusionPipeline, modification: str) -> list[Operator]:
    return [operator for operator in find_operators(pipeline) if operator.modifications == (modification,)]


@pytest.mark.parametrize("fixture", ["tiny_text", "tiny_transformer"])
def test_zero_removes_the_residual_branch(fixture: str, request: pytest.FixtureRequest) -> None:
    pipeline = request.getfixturevalue(fixture)
    denoiser = find_denoiser(pipeline)
    branches = operators_with(pipeline, "zero")
    assert {operator.module_type for operator in branches} >= {"attention", "feed_forward"}
    for operator in branches:
        expected = output_with_hook(denoiser, operator.name, lambda _, __, result: torch.zeros_like(result))
        assert torch.equal(output_modified(denoiser, operator), expected)
        assert not torch.equal(expected, output(denoiser))


@pytest.mark.parametrize("fixture", ["tiny", "tiny_text"])
def test_identity_returns_the_input(fixture: str, request: pytest.FixtureRequest) -> None:
    pipeline = request.getfixturevalue(fixture)
    denoiser = find_denoiser(pipeline)

    checked = 0
    for operator in operators_with(pipeline, "identity")[::4]:
        inputs: list[Any] = []

        def first_input(_: nn.Module, args: tuple[Any, ...], result: Any, inputs: list[Any] = inputs) -> Any:
            inputs.append(args)
            if not args:
                return result
            return (args[0],) if isinstance(result, tuple) else args[0]

        expected = output_with_hook(denoiser, operator.name, first_input)
        if all(inputs):  # no call by keywords alone
            assert torch.equal(output_modified(denoiser, operator), expected), operator.name
            checked += 1
    assert checked > 10


def projected(block: nn.Module, args: tuple[Any, ...], _: Any) -> Any:
    return block.get_submodule("conv_shortcut")(args[0])


@pytest.mark.parametrize("fixture", ["tiny", "tiny_text"])
def test_shortcut_is_the_projection_alone(fixture: str, request: pytest.FixtureRequest) -> None:
    pipeline = request.getfixturevalue(fixture)
    denoiser = find_denoiser(pipeline)
    blocks = operators_with(pipeline, "shortcut")
    assert len(blocks) >= 4
    for operator in blocks:
        expected = output_with_hook(denoiser, operator.name, projected)
        assert torch.equal(output_modified(denoiser, operator), expected)


def test_several_modifications_hold_at_once(tiny: DiffusionPipeline, operators: tuple[Operator, ...]) -> None:
    denoiser = find_denoiser(tiny)
    names = ("down_blocks.0.resnets.0", "mid_block")
    removals = [operator.candidates[0].removal for operator in operators if operator.name in names]
    modules = [denoiser.module.get_submodule(name) for name in names]
    handles = [module.register_forward_hook(lambda _, args, __: args[0]) for module in modules]
    expected = output(denoiser)
    for handle in handles:
        handle.remove()
    with modified(denoiser.module, removals):
        assert torch.equal(output(denoiser), expected)


class Snapshot:
    """What must be the same afterwards: the modules themselves, their weights, hooks and output."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.modules = dict(denoiser.module.named_modules())
        self.weights = {name: weight.clone() for name, weight in denoiser.module.state_dict().items()}
        self.output = output(denoiser)

    def check(self) -> None:
        network = self.denoiser.module
        now = dict(network.named_modules())
        assert list(now) == list(self.modules)
        assert all(now[name] is self.modules[name] for name in now)
        state = network.state_dict()
        assert list(state) == list(self.weights)
        assert all(torch.equal(state[name], weight) for name, weight in self.weights.items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in now.values())
        assert torch.equal(output(self.denoiser), self.output)


@pytest.fixture
def denoiser(fresh: DiffusionPipeline) -> Denoiser:
    return find_denoiser(fresh)


def test_every_modification_is_undone(denoiser: Denoiser, operators: tuple[Operator, ...]) -> None:
    before = Snapshot(denoiser)
    for operator in operators:
        changed = output_modified(denoiser, operator)
        assert not torch.equal(changed, before.output), operator.name
    before.check()


def test_a_modification_is_undone_after_an_error(denoiser: Denoiser, operators: tuple[Operator, ...]) -> None:
    before = Snapshot(denoiser)
    with pytest.raises(ZeroDivisionError), modified(denoiser.module, [operators[2].candidates[0].removal]):
        raise ZeroDivisionError
    before.check()


def test_a_modification_is_undone_after_an_interrupt(denoiser: Denoiser, operators: tuple[Operator, ...]) -> None:
    before = Snapshot(denoiser)
    handle = denoiser.module.register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), modified(denoiser.module, [operators[2].candidates[0].removal]):
        output(denoiser)
    handle.remove()
    before.check()


def test_an_unknown_operator_is_refused_and_nothing_is_modified(denoiser: Denoiser) -> None:
    before = Snapshot(denoiser)
    removals = [
        Removal(operator="mid_block.resnets.0", modification="identity"),
        Removal(operator="mid_block.resnet.1", modification="identity"),
    ]
    with pytest.raises(OperatorNotFound) as caught, modified(denoiser.module, removals):
        pass
    assert "'mid_block.resnet.1'" in str(caught.value)
    assert "mid_block.resnets.1" in str(caught.value)
    assert "\n" not in str(caught.value)
    before.check()


def test_an_unknown_name_without_a_near_one_names_the_command(denoiser: Denoiser) -> None:
    removal = Removal(operator="zzzzzzzzzzzzzzzzzzzz", modification="identity")
    with (
        pytest.raises(OperatorNotFound, match=r"'zzzzzzzzzzzzzzzzzzzz'.*ldpruner operators"),
        modified(denoiser.module, [removal]),
    ):
        pass


@pytest.mark.parametrize(
    "removals",
    [
        [("mid_block", "identity", 0), ("mid_block.resnets.0", "identity", 0)],
        [("mid_block.resnets.0", "identity", 0), ("mid_block.resnets.1", "shortcut", "conv_shortcut")],
    ],
    ids=["inside another", "no such projection"],
)
def test_impossible_removals_are_refused_and_nothing_is_modified(
    denoiser: Denoiser, removals: list[tuple[str, Any, Any]]
) -> None:
    before = Snapshot(denoiser)
    values = [Removal(operator=name, modification=kind, source=source) for name, kind, source in removals]
    with pytest.raises(LdPrunerError) as caught, modified(denoiser.module, values):
        pass
    assert "\n" not in str(caught.value)
    assert values[1].operator in str(caught.value)
    before.check()


@pytest.mark.case(name="removal-source")
@pytest.mark.parametrize(
    ("modification", "source"),
    [
        ("identity", -1),
        ("identity", 10**9),
        ("zero", "no such input"),
        ("identity", (0, 77)),
        ("shortcut", 0),
        ("shortcut", ("conv_shortcut",)),
    ],
)
def test_a_source_that_the_operator_does_not_have_is_refused_in_one_line(
    denoiser: Denoiser, modification: Any, source: Any
) -> None:
    before = Snapshot(denoiser)
    removal = Removal(operator="mid_block.resnets.0", modification=modification, source=source)
    with pytest.raises(PlanMismatch, match=r"^operator 'mid_block.resnets.0': source ") as caught:
        check_removals(denoiser.module, [removal])
    assert repr(source) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(PlanMismatch), modified(denoiser.module, [removal]):
        pass
    before.check()


@pytest.mark.case(name="removal-source")
@pytest.mark.parametrize("source", [2, "hidden", (0, "hidden")])
def test_an_input_that_the_signature_does_not_have_is_refused(source: Any) -> None:
    network = nn.Sequential(nn.MultiheadAttention(2, 1), nn.SiLU())
    with pytest.raises(PlanMismatch, match=r"operator '1': .*\(its inputs: input\)"):
        check_removals(network, [Removal(operator="1", modification="identity", source=source)])


def test_sources_by_position_and_by_name_are_accepted(denoiser: Denoiser) -> None:
    for source in (0, "input_tensor", (0, None), 1, "surplus"):
        check_removals(
            denoiser.module, [Removal(operator="mid_block.resnets.0", modification="identity", source=source)]
        )


@pytest.mark.case(name="many-removals")
def test_twenty_thousand_removals_are_checked_and_made_in_seconds() -> None:
    network = nn.ModuleList(nn.Identity() for _ in range(20_000))
    removals = [Removal(operator=str(place), modification="identity") for place in range(20_000)]
    start = time.thread_time()
    with pytest.raises(PlanMismatch, match="'19999' and '19999' overlap"):
        check_removals(network, [*removals, removals[-1]])
    with modified(network, removals[:2000]):
        assert type(network[1999]).__module__ == "ldpruner.stand_ins"
    assert time.thread_time() - start < 5


def test_a_shared_module_is_modified_wherever_it_is_registered() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(2, 2)
            self.second = self.first

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            first, second = self.first, self.second
            result = second(first(values))
            assert isinstance(result, torch.Tensor)
            return result

    network, values = Twice(), torch.ones(1, 2)
    before = network(values)
    with modified(network, [Removal(operator="first", modification="identity")]):
        assert torch.equal(network(values), values)
    assert network.first is network.second
    assert torch.equal(network(values), before)
