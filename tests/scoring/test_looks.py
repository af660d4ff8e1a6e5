"""Looks: what removals do in single steps of a path that stays untouched."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.operators.discovery import Removal
from ldpruner.operators.patching import modified
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.sampling import sample_latents
from ldpruner.scoring import looks
from ldpruner.scoring.adaptive import AdaptiveScorer
from ldpruner.scoring.looks import look
from ldpruner.scoring.runner import Scoring
from ldpruner.scoring.store import RunStore
from ldpruner.scoring.worker import Task, Worker

PROBE = ldpruner.Probe(samples=8, steps=8)


@pytest.fixture(scope="module")
def removals(operators: Sequence[ldpruner.Operator]) -> tuple[Removal, ...]:
    return tuple(candidate.removal for operator in operators[:12] for candidate in operator.candidates)


@pytest.mark.parametrize("kind", ["tiny", "tiny_text"])
def test_a_look_is_how_far_the_output_moves_for_the_same_input(kind: str, request: pytest.FixtureRequest) -> None:
    pipeline = request.getfixturevalue(kind)
    probe = ldpruner.Probe(samples=1, steps=2)  # two steps, of which the first is looked at
    removals = [one.removal for operator in ldpruner.find_operators(pipeline)[:8] for one in operator.candidates]
    found = look(pipeline, "unet", probe, 0, removals)
    call = find_denoiser(pipeline, call=probe.arguments(pipeline, [0]))
    baseline = call()[0]
    for removal, effect in zip(removals, found, strict=True):
        with modified(pipeline.unet, [removal]):
            moved = call()[0]
        assert effect == pytest.approx(float((moved - baseline).square().mean()), rel=1e-4), removal


def test_a_look_leaves_the_path_and_the_network_as_they_are(
    tiny: DiffusionPipeline, removals: tuple[Removal, ...]
) -> None:
    baseline = sample_latents(tiny, PROBE, [0])
    seen, modules = looks._Looks(0, removals), dict(tiny.unet.named_modules())
    handle = tiny.unet.register_forward_hook(seen.after_call, with_kwargs=True)
    assert torch.equal(sample_latents(tiny, PROBE, [0], seen.after_step), baseline)
    handle.remove()
    assert seen.effects.all()
    assert dict(tiny.unet.named_modules()) == modules


def test_samples_take_turns_and_every_second_step_is_looked_at_once(
    tiny: DiffusionPipeline, removals: tuple[Removal, ...]
) -> None:
    for steps, turns in ((8, [1, 1, 1, 1]), (6, [1, 1, 1, 0]), (2, [1, 0, 0, 0]), (20, [3, 3, 2, 2])):
        probe = PROBE.model_copy(update={"steps": steps})
        for sample, turn in enumerate(turns):
            outcome = Worker(tiny)(Task("unet", probe, None, (sample,), 1, looks=removals[:3]))
            assert outcome.effects is not None
            assert outcome.calls == steps + 3 * turn
            assert bool(outcome.effects.all()) == bool(turn)


def test_what_does_not_fit_is_not_a_number(tiny: DiffusionPipeline, removals: tuple[Removal, ...]) -> None:
    unfit = Removal(operator="conv_in", modification="identity")  # the other blocks want more channels
    found = look(tiny, "unet", PROBE, 0, [removals[0], unfit, removals[1]])
    assert [math.isnan(one) for one in found] == [False, True, False]


def test_running_out_of_memory_says_nothing_of_a_removal(
    tiny: DiffusionPipeline, removals: tuple[Removal, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(looks, "_output", full)
    with pytest.raises(torch.OutOfMemoryError):
        look(tiny, "unet", PROBE, 0, removals)


def test_what_was_seen_is_in_the_ledger_and_not_looked_at_again(
    tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], tmp_path: Path
) -> None:
    with Scoring(tiny, operators, PROBE, run=tmp_path) as scoring:
        candidates = scoring.candidates[:5]
        parts = list(scoring.drawing.look(candidates))
        effects, calls = [scoring.drawing.effect(one) for one in candidates], scoring.store.denoiser_calls()
    assert len(parts) == looks.SAMPLES
    assert calls == looks.SAMPLES * PROBE.steps + len(candidates) * PROBE.steps / looks.EVERY
    with Scoring(tiny, operators, PROBE, run=tmp_path) as scoring:
        assert [scoring.drawing.effect(one) for one in candidates] == effects
        assert list(scoring.drawing.look(candidates)) == parts
        assert scoring.store.denoiser_calls() == calls
    with RunStore(tmp_path) as store:
        store.record_looks(0, {("mid_block", "zero"): math.nan}, 3)
        assert math.isnan(store.looks()["mid_block", "zero"][0])


def test_what_cannot_be_looked_at_is_drawn(
    tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "_effect", lambda *_: math.nan)
    with Scoring(tiny, operators[:6], PROBE) as scoring:
        for _ in AdaptiveScorer(scoring, [ldpruner.Budget(macs=0.99)]):
            pass
        assert all(one.samples >= 1 for one in scoring.scores().scores if one.is_known)
