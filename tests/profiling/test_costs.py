"""Each cost is checked against bounds that hold on any machine."""

import math
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
    peak_memory,
)


@pytest.fixture(scope="module")
def denoiser(tiny: DiffusionPipeline) -> Denoiser:
    return find_denoiser(tiny)


def call_of(pipeline: DiffusionPipeline, probe: ldpruner.Probe, samples: int = 1) -> Callable[[], None]:
    """A whole call of a pipeline, each time with new generators."""
    return lambda: run_pipeline(pipeline, probe.arguments(pipeline, range(samples)))


def test_latency_is_positive_and_most_of_it_is_the_denoisers(tiny: DiffusionPipeline, denoiser: Denoiser) -> None:
    probe = ldpruner.Probe(steps=3)
    total, share = measure_latency(call_of(tiny, probe), denoiser.module, repeats=3)
    assert 0 < total < math.inf
    assert 0 < share < 1


@pytest.mark.case(name="device-is-synchronized")
def test_a_device_that_works_on_its_own_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    elapsed_ms(lambda: None, torch.device("cpu"))
    assert waited == []
    elapsed_ms(lambda: None, torch.device("mps"))
    assert waited == [torch.device("mps")] * 2


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
    pair, four = (peak_memory(tiny, call_of(tiny, two, samples)) for samples in (2, 4))
    assert base > all_weights(tiny)
    assert four - pair == pytest.approx(2 * (pair - base), rel=0.1)


def test_a_pipeline_that_cannot_decode_is_timed_without(fresh: DiffusionPipeline) -> None:
    def fail(*_: object) -> None:
        raise NotImplementedError("no decoding without tiling")

    fresh.vqvae.decoder.register_forward_pre_hook(fail)
    costs = measure_costs(fresh, find_denoiser(fresh), ldpruner.Probe(steps=2))
    assert 0 < costs.denoiser_ms < costs.latency_ms


def test_costs_are_those_of_a_whole_call(tiny: DiffusionPipeline, denoiser: Denoiser) -> None:
    costs = measure_costs(tiny, denoiser, ldpruner.Probe(steps=2))
    assert costs.parameters == count_parameters(tiny.unet)
    assert costs.macs == denoiser_macs(denoiser)
    assert costs.memory > all_weights(tiny)
    assert 0 < costs.denoiser_ms < costs.latency_ms
