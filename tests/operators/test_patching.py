"""A modification does what its name says, and is undone exactly."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from ldpruner.errors import LdPrunerError, OperatorNotFound
from ldpruner.operators.discovery import Operator, Removal, find_operators
from ldpruner.operators.patching import modified
from ldpruner.pipelines.denoiser import Denoiser, find_denoiser


def hooked(denoiser: Denoiser, name: str, stand_in: Callable[[nn.Module, Any, Any], Any]) -> torch.Tensor:
    """The denoiser's output with one submodule's output exchanged by a hook: the module itself still runs."""
    handle = denoiser.module.get_submodule(name).register_forward_hook(stand_in)
    try:
        return output(denoiser)
    finally:
        handle.remove()


def output(denoiser: Denoiser) -> torch.Tensor:
    made = denoiser()
    sample = made[0] if isinstance(made, tuple) else made.sample
    assert isinstance(sample, torch.Tensor)
    return sample


def output_modified(denoiser: Denoiser, operator: Operator) -> torch.Tensor:
    (candidate,) = operator.candidates
    with modified(denoiser.module, [candidate.removal]):
        return output(denoiser)


def removable(pipeline: DiffusionPipeline, modification: str) -> list[Operator]:
    return [one for one in find_operators(pipeline) if one.modifications == (modification,)]


@pytest.mark.parametrize("fixture", ["tiny_text", "tiny_transformer"])
def test_zero_removes_the_residual_branch(fixture: str, request: pytest.FixtureRequest) -> None:
    pipeline = request.getfixturevalue(fixture)
    denoiser = find_denoiser(pipeline)
    branches = removable(pipeline, "zero")
    assert {one.kind for one in branches} >= {"attention", "feed_forward"}
    for one in branches:
        expected = hooked(denoiser, one.name, lambda _, __, made: torch.zeros_like(made))
        assert torch.equal(output_modified(denoiser, one), expected)
        assert not torch.equal(expected, output(denoiser))


@pytest.mark.parametrize("fixture", ["tiny", "tiny_text"])
def test_identity_gives_back_the_input(fixture: str, request: pytest.FixtureRequest) -> None:
    pipeline = request.getfixturevalue(fixture)
    denoiser = find_denoiser(pipeline)

    def first_input(_: nn.Module, given: tuple[Any, ...], made: Any) -> Any:
        return (given[0],) if isinstance(made, tuple) else given[0]

    checked = 0
    for one in removable(pipeline, "identity"):
        calls: list[int] = []

        def counting(module: nn.Module, given: tuple[Any, ...], made: Any, calls: list[int] = calls) -> Any:
            calls.append(len(given))
            return first_input(module, given, made) if given else made

        expected = hooked(denoiser, one.name, counting)
        if all(calls):
            assert torch.equal(output_modified(denoiser, one), expected), one.name
            checked += 1
    assert checked > 40


def projected(block: nn.Module, given: tuple[Any, ...], _: Any) -> Any:
    return block.get_submodule("conv_shortcut")(given[0])


@pytest.mark.parametrize("fixture", ["tiny", "tiny_text"])
def test_shortcut_is_the_projection_alone(fixture: str, request: pytest.FixtureRequest) -> None:
    pipeline = request.getfixturevalue(fixture)
    denoiser = find_denoiser(pipeline)
    blocks = removable(pipeline, "shortcut")
    assert len(blocks) >= 4
    for one in blocks:
        expected = hooked(denoiser, one.name, projected)
        assert torch.equal(output_modified(denoiser, one), expected)


def test_several_modifications_hold_at_once(tiny: DiffusionPipeline, operators: tuple[Operator, ...]) -> None:
    denoiser = find_denoiser(tiny)
    names = ("down_blocks.0.resnets.0", "mid_block")
    removals = [one.candidates[0].removal for one in operators if one.name in names]
    first, second = (denoiser.module.get_submodule(name) for name in names)
    handles = [module.register_forward_hook(lambda _, given, __: given[0]) for module in (first, second)]
    expected = output(denoiser)
    for handle in handles:
        handle.remove()
    with modified(denoiser.module, removals):
        assert torch.equal(output(denoiser), expected)


class Snapshot:
    """What must be the same afterwards: the modules themselves, their weights, their hooks, the output."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.modules = dict(denoiser.module.named_modules())
        self.weights = {name: weight.clone() for name, weight in denoiser.module.state_dict().items()}
        self.output = output(denoiser)

    def check(self) -> None:
        module = self.denoiser.module
        now = dict(module.named_modules())
        assert list(now) == list(self.modules)
        assert all(now[name] is self.modules[name] for name in now)
        state = module.state_dict()
        assert list(state) == list(self.weights)
        assert all(torch.equal(state[name], weight) for name, weight in self.weights.items())
        assert not any(one._forward_hooks or one._forward_pre_hooks for one in now.values())
        assert torch.equal(output(self.denoiser), self.output)


@pytest.fixture
def denoiser(fresh: DiffusionPipeline) -> Denoiser:
    return find_denoiser(fresh)


def test_every_modification_is_undone(denoiser: Denoiser, operators: tuple[Operator, ...]) -> None:
    before = Snapshot(denoiser)
    for one in operators:
        changed = output_modified(denoiser, one)
        assert not torch.equal(changed, before.output), one.name
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


def test_an_unknown_operator_is_told_and_nothing_is_modified(denoiser: Denoiser) -> None:
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


def test_a_name_unlike_any_other_is_told_where_to_look(denoiser: Denoiser) -> None:
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
def test_removals_that_cannot_be_made_are_told_and_nothing_is_modified(
    denoiser: Denoiser, removals: list[tuple[str, Any, Any]]
) -> None:
    before = Snapshot(denoiser)
    wanted = [Removal(operator=name, modification=what, source=source) for name, what, source in removals]
    with pytest.raises(LdPrunerError) as caught, modified(denoiser.module, wanted):
        pass
    assert "\n" not in str(caught.value)
    assert wanted[1].operator in str(caught.value)
    before.check()


def test_a_shared_module_is_modified_wherever_it_stands() -> None:
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
