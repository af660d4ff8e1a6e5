"""The share of each module, and what several removals save together."""

import time

import pytest
import torch
from diffusers import DiffusionPipeline

from ldpruner.operators.discovery import Removal
from ldpruner.pipelines.denoiser import Denoiser, find_denoiser
from ldpruner.profiling.shares import module_shares, normalize_shares, saved_share


@pytest.fixture(scope="module")
def denoiser(tiny: DiffusionPipeline) -> Denoiser:
    return find_denoiser(tiny)


@pytest.fixture(scope="module")
def shares(denoiser: Denoiser) -> dict[str, float]:
    return module_shares(denoiser)


def test_every_module_that_runs_has_a_share_of_the_time(denoiser: Denoiser, shares: dict[str, float]) -> None:
    names: set[str] = set()
    handles = [
        module.register_forward_hook(lambda *_, name=name: names.add(name))
        for name, module in denoiser.module.named_modules()
        if name
    ]
    denoiser()
    for handle in handles:
        handle.remove()
    assert set(shares) == names
    assert all(0 < share <= 1.1 for share in shares.values())


def test_the_shares_of_children_add_up_to_no_more_than_their_parent(
    denoiser: Denoiser, shares: dict[str, float]
) -> None:
    for name, module in denoiser.module.named_modules():
        inside = sum(shares.get(f"{name}.{child}".strip("."), 0) for child, _ in module.named_children())
        own = shares.get(name) if name else 1.0
        if own is not None:  # a list of modules does not run itself
            assert inside <= own + 1e-9, name


def test_shares_that_exceed_those_of_their_module_are_scaled_down() -> None:
    shares = normalize_shares({"a": 0.5, "a.0.x": 0.4, "a.0.y": 0.2, "a.0.y.z": 0.2, "b": 0.3, "b.w": 0.1})
    expected = {"a": 0.5, "a.0.x": 1 / 3, "a.0.y": 1 / 6, "a.0.y.z": 1 / 6, "b": 0.3, "b.w": 0.1}
    assert shares == pytest.approx(expected)
    assert sum(normalize_shares({"a": 0.9, "b": 0.3}).values()) == pytest.approx(1)


def test_convolutions_at_full_resolution_take_longer_than_an_activation(shares: dict[str, float]) -> None:
    assert shares["up_blocks.1"] > shares["conv_act"]
    assert sum(shares[name] for name in ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0")) > 0.3


def test_time_that_other_processes_take_counts_for_no_module(denoiser: Denoiser) -> None:
    sleeping = denoiser.module.get_submodule("conv_act").register_forward_hook(lambda *_: time.sleep(0.1))
    shares = module_shares(denoiser, repeats=1)
    sleeping.remove()
    assert shares["conv_act"] < shares["up_blocks.1"]


@pytest.mark.parametrize(("sleep_of_three", "sleep_of_one", "expected"), [(0.0, 0.03, 3), (0.03, 0.0, 1)])
def test_one_thread_is_used_where_three_are_no_faster(
    denoiser: Denoiser, sleep_of_three: float, sleep_of_one: float, expected: int
) -> None:
    threads: list[int] = []

    def sleep(*_: object) -> None:
        threads.append(torch.get_num_threads())
        time.sleep(sleep_of_three if threads[-1] > 1 else sleep_of_one)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    handle = denoiser.module.register_forward_hook(sleep)
    module_shares(denoiser, repeats=1)
    handle.remove()
    assert (torch.get_num_threads(), threads[-1]) == (3, expected)
    torch.set_num_threads(before)


def test_timing_leaves_no_hooks(denoiser: Denoiser, shares: dict[str, float]) -> None:
    assert shares
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in denoiser.module.modules())


def test_what_a_removal_saves_is_measured_in_place_and_undone(denoiser: Denoiser) -> None:
    before = {name: id(module) for name, module in denoiser.module.named_modules()}
    most = [
        Removal(operator=name, modification="identity")
        for name, module in denoiser.module.named_modules()
        if name.startswith(("down_blocks", "up_blocks")) and "attentions" in name and name.count(".") == 3
    ]
    assert saved_share(denoiser, []) < saved_share(denoiser, most) < 1
    assert {name: id(module) for name, module in denoiser.module.named_modules()} == before
