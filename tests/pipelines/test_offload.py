"""Model CPU offload, with the CPU as the device, changes nothing else; what hooks hold is not copied."""

import copy

import pytest
import torch
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.operators.patching import modified
from ldpruner.pipelines.offload import is_offloaded, module_device, offload_hooks, without_offload
from ldpruner.pipelines.sampling import sample_latents
from tests.conftest import planned
from tests.families import FAMILIES
from tests.families.parts import PROMPTS

FEW = 2  # operators


@pytest.fixture(scope="module", params=["stable-diffusion", pytest.param("flux", marks=pytest.mark.extensive)])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def plain(name: str) -> DiffusionPipeline:
    pipeline: DiffusionPipeline = FAMILIES[name].build()
    return pipeline


@pytest.fixture
def offloaded(plain: DiffusionPipeline) -> DiffusionPipeline:
    pipeline = copy.deepcopy(plain)
    pipeline.enable_model_cpu_offload(device="cpu")
    return pipeline


@pytest.fixture(scope="module")
def probe(name: str) -> ldpruner.Probe:
    return ldpruner.Probe(samples=2, steps=2, prompts=PROMPTS, call=dict(FAMILIES[name].call))


@pytest.fixture(scope="module")
def operators(plain: DiffusionPipeline) -> tuple[ldpruner.Operator, ...]:
    return ldpruner.find_operators(plain)[:FEW]


def test_operators_and_their_modifications_are_the_same(
    plain: DiffusionPipeline,
    offloaded: DiffusionPipeline,
    probe: ldpruner.Probe,
    operators: tuple[ldpruner.Operator, ...],
) -> None:
    assert ldpruner.find_operators(offloaded)[:FEW] == operators
    latents = []
    for pipeline in (plain, offloaded):
        with modified(getattr(pipeline, operators[1].component), operators[1].candidates):
            latents.append(sample_latents(pipeline, probe, [0, 1]))
    assert torch.equal(*latents)


def test_a_pipeline_that_is_stopped_early_frees_its_networks(
    offloaded: DiffusionPipeline, probe: ldpruner.Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[bool] = []
    free = offloaded.maybe_free_model_hooks

    def recorded() -> None:
        freed.append(True)
        free()

    monkeypatch.setattr(offloaded, "maybe_free_model_hooks", recorded)
    sample_latents(offloaded, probe, [0])
    assert freed


def test_a_pruned_pipeline_is_offloaded_alike_and_shares_what_it_shared(
    plain: DiffusionPipeline,
    offloaded: DiffusionPipeline,
    probe: ldpruner.Probe,
    operators: tuple[ldpruner.Operator, ...],
) -> None:
    plan = ldpruner.Plan(removed=(planned(operators[1].candidates[0]),))
    before = sample_latents(offloaded, probe, [0])
    expected, pruned = (ldpruner.prune(pipeline, plan) for pipeline in (plain, offloaded))
    assert is_offloaded(getattr(pruned, operators[0].component))
    assert pruned.text_encoder is offloaded.text_encoder
    assert torch.equal(sample_latents(pruned, probe, [0]), sample_latents(expected, probe, [0]))
    assert torch.equal(sample_latents(offloaded, probe, [0]), before)


def test_hooks_come_back_after_an_error(offloaded: DiffusionPipeline) -> None:
    with without_offload(offloaded):
        assert not is_offloaded(offloaded.text_encoder)
    assert is_offloaded(offloaded.text_encoder)
    with pytest.raises(ZeroDivisionError), without_offload(offloaded):
        raise ZeroDivisionError
    assert is_offloaded(offloaded.text_encoder)


def test_a_module_computes_where_its_hooks_or_its_weights_say(offloaded: DiffusionPipeline) -> None:
    meta = torch.device("meta")
    assert module_device(torch.nn.SiLU()) == torch.device("cpu")
    assert module_device(torch.nn.SiLU(), meta) == module_device(torch.nn.Linear(1, 1, device=meta)) == meta
    text_encoder = offloaded.text_encoder
    assert module_device(text_encoder) == torch.device("cpu:0")
    offload_hooks(text_encoder)[0].execution_device = meta
    assert module_device(text_encoder) == meta
