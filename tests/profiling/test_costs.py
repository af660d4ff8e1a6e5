"""What a pipeline costs: each number against bounds that hold on any machine."""

import math
import time
from collections.abc import Callable

import pytest
import torch
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.pipelines.denoiser import Denoiser, find_denoiser
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pipelines.running import run_pipeline
from ldpruner.profiling.costs import device_of, latency, module_shares, nested, peak_memory, timed_ms


@pytest.fixture(scope="module")
def denoiser(tiny: DiffusionPipeline) -> Denoiser:
    return find_denoiser(tiny)


@pytest.fixture(scope="module")
def shares(denoiser: Denoiser) -> dict[str, float]:
    return module_shares(denoiser)


def test_every_module_that_runs_has_a_share_of_the_time(denoiser: Denoiser, shares: dict[str, float]) -> None:
    ran: set[str] = set()
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.add(name))
        for name, module in denoiser.module.named_modules()
        if name
    ]
    denoiser()
    for handle in handles:
        handle.remove()
    assert set(shares) == ran
    assert all(0 < share <= 1.1 for share in shares.values())


def test_the_shares_of_children_add_up_to_no_more_than_their_parent(
    denoiser: Denoiser, shares: dict[str, float]
) -> None:
    for name, module in denoiser.module.named_modules():
        inside = sum(shares.get(f"{name}.{child}".strip("."), 0) for child, _ in module.named_children())
        own = shares.get(name) if name else 1.0
        if own is not None:  # a list of modules does not run itself
            assert inside <= own + 1e-9, name


def test_parts_that_were_timed_too_long_share_what_their_module_takes() -> None:
    found = nested({"a": 0.5, "a.0.x": 0.4, "a.0.y": 0.2, "a.0.y.z": 0.2, "b": 0.3, "b.w": 0.1})
    assert found == pytest.approx({"a": 0.5, "a.0.x": 1 / 3, "a.0.y": 1 / 6, "a.0.y.z": 1 / 6, "b": 0.3, "b.w": 0.1})
    assert sum(nested({"a": 0.9, "b": 0.3}).values()) == pytest.approx(1)


def test_convolutions_at_full_resolution_take_longer_than_an_activation(shares: dict[str, float]) -> None:
    assert shares["up_blocks.1"] > shares["conv_act"]
    assert sum(shares[name] for name in ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0")) > 0.3


def test_a_module_without_weights_is_where_its_network_is() -> None:
    there = torch.device("meta")
    assert device_of(torch.nn.SiLU(), there) == device_of(torch.nn.Linear(1, 1, device=there)) == there
    assert device_of(torch.nn.SiLU()) == torch.device("cpu")


def test_time_that_a_processor_gives_to_others_is_no_modules(denoiser: Denoiser) -> None:
    slept = denoiser.module.get_submodule("conv_act").register_forward_hook(lambda *_: time.sleep(0.5))
    shares = module_shares(denoiser, repeats=1)
    slept.remove()
    assert shares["conv_act"] < shares["up_blocks.1"]


@pytest.mark.parametrize(("several", "one", "chosen"), [(0.0, 0.05, 3), (0.05, 0.0, 1)])
def test_threads_that_others_keep_waiting_are_not_timed(
    denoiser: Denoiser, several: float, one: float, chosen: int
) -> None:
    seen: list[int] = []

    def wait(*_: object) -> None:
        seen.append(torch.get_num_threads())
        time.sleep(several if seen[-1] > 1 else one)

    known = torch.get_num_threads()
    torch.set_num_threads(3)
    waiting = denoiser.module.register_forward_hook(wait)
    module_shares(denoiser, repeats=1)
    waiting.remove()
    assert (torch.get_num_threads(), seen[-1]) == (3, chosen)
    torch.set_num_threads(known)


def called(pipeline: DiffusionPipeline, probe: ldpruner.Probe, samples: int = 1) -> Callable[[], None]:
    """A whole call of a pipeline, each time with new generators."""
    return lambda: run_pipeline(pipeline, probe.arguments(pipeline, range(samples)))


def test_timing_leaves_no_hooks(denoiser: Denoiser, shares: dict[str, float]) -> None:
    assert shares
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in denoiser.module.modules())


def test_latency_is_positive_and_most_of_it_is_the_denoisers(tiny: DiffusionPipeline, denoiser: Denoiser) -> None:
    probe = ldpruner.Probe(steps=3)
    total, share = latency(called(tiny, probe), denoiser.module, repeats=3)
    assert 0 < total < math.inf
    assert 0 < share < 1


def test_more_steps_take_longer(tiny: DiffusionPipeline) -> None:
    few, many = ldpruner.Probe(steps=1), ldpruner.Probe(steps=30)
    called(tiny, few)()
    times = [timed_ms(called(tiny, probe), torch.device("cpu")) for probe in (few, many)]
    assert times[1] > 3 * times[0]


def all_weights(pipeline: DiffusionPipeline) -> int:
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    return sum(weight.nbytes for part in parts for weight in (*part.parameters(), *part.buffers()))


def largest_activation(pipeline: DiffusionPipeline, probe: ldpruner.Probe) -> int:
    sizes: list[int] = []
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    handles = [
        module.register_forward_hook(
            lambda _, __, made: sizes.append(made.nbytes) if isinstance(made, torch.Tensor) else None
        )
        for part in parts
        for module in part.modules()
    ]
    pipeline(**probe.arguments(pipeline, [0]))
    for handle in handles:
        handle.remove()
    return max(sizes)


@pytest.mark.parametrize("fixture", ["tiny", "tiny_text"])
def test_peak_memory_counts_weights_and_activations(fixture: str, request: pytest.FixtureRequest) -> None:
    pipeline = request.getfixturevalue(fixture)
    probe = ldpruner.Probe(steps=2)
    peak = peak_memory(pipeline, called(pipeline, probe))
    least = all_weights(pipeline) + largest_activation(pipeline, probe)
    assert least <= peak < 4 * least


def test_peak_memory_is_the_same_in_every_run(tiny: DiffusionPipeline) -> None:
    probe = ldpruner.Probe(steps=2)
    assert len({peak_memory(tiny, called(tiny, probe)) for _ in range(3)}) == 1


def test_peak_memory_does_not_grow_with_the_steps_but_with_the_batch(tiny: DiffusionPipeline) -> None:
    two, nine = ldpruner.Probe(steps=2), ldpruner.Probe(steps=9)
    base = peak_memory(tiny, called(tiny, two))
    assert peak_memory(tiny, called(tiny, nine)) == base
    weights = all_weights(tiny)
    four = peak_memory(tiny, called(tiny, two, 4))
    assert four - weights == pytest.approx(4 * (base - weights), rel=0.1)


def test_the_costs_of_a_run_are_those_of_its_pipeline(tiny: DiffusionPipeline, scores: ldpruner.Scores) -> None:
    assert scores.costs.parameters == count_parameters(tiny.unet)
    assert scores.costs.memory > all_weights(tiny)
    assert 0 < scores.costs.denoiser_ms < scores.costs.latency_ms
