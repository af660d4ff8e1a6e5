"""Model CPU offload, with the CPU as the device: nothing else changes, and nothing that hooks hold is copied."""

import copy

import pytest
import torch
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.pipelines.offload import execution_device, hooks_of, is_offloaded
from ldpruner.pipelines.sampling import draw_latents
from ldpruner.profiling.costs import device_of
from ldpruner.selection.plan import PlannedRemoval
from tests.families import FAMILIES
from tests.families.parts import PROMPTS

FEW = 6  # operators


@pytest.fixture(scope="module", params=["stable-diffusion", "flux"])
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


def test_operators_and_scores_are_the_same(
    plain: DiffusionPipeline,
    offloaded: DiffusionPipeline,
    probe: ldpruner.Probe,
    operators: tuple[ldpruner.Operator, ...],
) -> None:
    assert ldpruner.find_operators(offloaded)[:FEW] == operators
    expected, found = (
        [one.score for one in ldpruner.score_operators(pipeline, operators, probe, budgets=None).scores]
        for pipeline in (plain, offloaded)
    )
    assert found == expected


def test_what_is_left_before_its_end_lets_its_networks_go(
    offloaded: DiffusionPipeline, probe: ldpruner.Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[bool] = []
    free = offloaded.maybe_free_model_hooks

    def watched() -> None:
        freed.append(True)
        free()

    monkeypatch.setattr(offloaded, "maybe_free_model_hooks", watched)
    draw_latents(offloaded, probe, [0])
    assert freed


def test_a_pruned_pipeline_is_offloaded_alike_and_shares_what_it_shared(
    plain: DiffusionPipeline,
    offloaded: DiffusionPipeline,
    probe: ldpruner.Probe,
    operators: tuple[ldpruner.Operator, ...],
) -> None:
    removed = tuple(PlannedRemoval(**one.candidates[0].removal.model_dump()) for one in operators[1:2])
    plan = ldpruner.Plan(removed=removed)
    before = draw_latents(offloaded, probe, [0])
    expected, pruned = (ldpruner.prune(one, plan) for one in (plain, offloaded))
    denoiser = getattr(pruned, operators[0].component)
    assert is_offloaded(denoiser)
    assert pruned.text_encoder is offloaded.text_encoder
    assert torch.equal(draw_latents(pruned, probe, [0]), draw_latents(expected, probe, [0]))
    assert torch.equal(draw_latents(offloaded, probe, [0]), before)


def test_an_offloaded_network_computes_where_its_hooks_say(offloaded: DiffusionPipeline) -> None:
    text_encoder = offloaded.text_encoder
    assert execution_device(torch.nn.Linear(1, 1)) is None
    assert execution_device(text_encoder) == torch.device("cpu:0")
    hooks_of(text_encoder)[0].execution_device = torch.device("meta")
    assert device_of(text_encoder) == torch.device("meta")
