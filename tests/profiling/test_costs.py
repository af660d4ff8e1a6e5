"""Each cost is checked against bounds that hold on any machine."""

import math
import time
from collections.abc import Callable

import pytest
import torch
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.operators.discovery import denoiser_macs
from ldpruner.pipelines.denoiser import Denoiser, find_denoiser
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pipelines.running import networks, run_pipeline
from ldpruner.profiling.costs import (
    elapsed_ms,
    measure_costs,
    measure_latency,
    module_shares,
    normalize_shares,
    peak_memory,
)


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


def call_of(pipeline: DiffusionPipeline, probe: ldpruner.Probe, samples: int = 1) -> Callable[[], None]:
    """A whole call of a pipeline, each time with new generators."""
    return lambda: run_pipeline(pipeline, probe.arguments(pipeline, range(samples)))


def test_timing_leaves_no_hooks(denoiser: Denoiser, shares: dict[str, float]) -> None:
    assert shares
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in denoiser.module.modules())


def test_latency_is_positive_and_most_of_it_is_the_denoisers(tiny: DiffusionPipeline, denoiser: Denoiser) -> None:
    probe = ldpruner.Probe(steps=3)
    total, share = measure_latency(call_of(tiny, probe), denoiser.module, repeats=3)
    assert 0 < total < math.inf
    assert 0 < share < 1


def test_more_steps_take_longer(tiny: DiffusionPipeline) -> None:
    few, many = ldpruner.Probe(steps=1), ldpruner.Probe(steps=30)
    call_of(tiny, few)()
    times = [elapsed_ms(call_of(tiny, probe), torch.device("cpu")) for probe in (few, many)]
    assert times[1] > 3 * times[0]


def all_weights(pipeline: DiffusionPipeline) -> int:
    weights = [weight for part in networks(pipeline).values() for weight in (*part.parameters(), *part.buffers())]
    return sum(weight.nbytes for weight in weights)


def largest_activation(pipeline: DiffusionPipeline, probe: ldpruner.Probe) -> int:
    sizes: list[int] = []
    handles = [
        module.register_forward_hook(
            lambda _, __, output: sizes.append(output.nbytes) if isinstance(output, torch.Tensor) else None
        )
        for network in networks(pipeline).values()
        for module in network.modules()
    ]
    pipeline(**probe.arguments(pipeline, [0]))
    for handle in handles:
        handle.remove()
    return max(sizes)


@pytest.mark.parametrize("fixture", ["tiny", "tiny_text"])
def test_peak_memory_counts_weights_and_activations(fixture: str, request: pytest.FixtureRequest) -> None:
    pipeline = request.getfixturevalue(fixture)
    probe = ldpruner.Probe(steps=2)
    peak = peak_memory(pipeline, call_of(pipeline, probe))
    least = all_weights(pipeline) + largest_activation(pipeline, probe)
    assert least <= peak < 4 * least


def test_peak_memory_is_the_same_in_every_run(tiny: DiffusionPipeline) -> None:
    probe = ldpruner.Probe(steps=2)
    assert len({peak_memory(tiny, call_of(tiny, probe)) for _ in range(3)}) == 1


def test_peak_memory_does_not_grow_with_the_steps_but_with_the_batch(tiny: DiffusionPipeline) -> None:
    two, nine = ldpruner.Probe(steps=2), ldpruner.Probe(steps=9)
    base = peak_memory(tiny, call_of(tiny, two))
    assert peak_memory(tiny, call_of(tiny, nine)) == base
    weights = all_weights(tiny)
    four = peak_memory(tiny, call_of(tiny, two, 4))
    assert four - weights == pytest.approx(4 * (base - weights), rel=0.1)


def test_costs_are_those_of_the_latents(tiny: DiffusionPipeline, denoiser: Denoiser) -> None:
    costs = measure_costs(tiny, denoiser, ldpruner.Probe(steps=2))
    assert costs.parameters == count_parameters(tiny.unet)
    assert costs.macs == denoiser_macs(denoiser)
    assert costs.memory > all_weights(tiny)
    assert 0 < costs.denoiser_ms < costs.latency_ms
