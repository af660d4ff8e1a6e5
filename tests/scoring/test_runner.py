"""Scoring: right, the same in any batch and order, and neither lost nor leaving anything behind when stopped."""

import contextlib
import copy
import functools
import math
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, LDMPipeline, ModelMixin, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

import ldpruner
from ldpruner.errors import NonFiniteLatents, OperatorNotFound, PipelineFailed, RunStoreError, StorageError
from ldpruner.operators.patching import modified
from ldpruner.pipelines.sampling import run_probe, sample_latents
from ldpruner.profiling.costs import Costs
from ldpruner.scoring.importance import METRICS, Metric
from ldpruner.scoring.runner import ScoringRun
from ldpruner.scoring.store import RunStore
from tests.families import FAMILIES

FEW = 6  # operators where the claim does not depend on which
Values = dict[tuple[str, str], float]

# on all samples, as in the paper
score_all = functools.partial(ldpruner.score_operators, budgets=None)


def values(scores: ldpruner.Scores) -> Values:
    return {(one.operator, one.modification): one.score for one in scores.scores}


def latents_of(pipeline: DiffusionPipeline, probe: ldpruner.Probe) -> Any:
    return sample_latents(pipeline, probe, range(probe.samples)).double().numpy()


def paper_score(z: Any, other: Any) -> float:
    """|| mean(Z) - mean(Z') || + || std(Z) - std(Z') ||, sums written out."""
    m = len(z)
    mean, other_mean = z.sum(0) / m, other.sum(0) / m
    std = (((z - mean) ** 2).sum(0) / m) ** 0.5
    other_std = (((other - other_mean) ** 2).sum(0) / m) ** 0.5
    return float(((mean - other_mean) ** 2).sum() ** 0.5 + ((std - other_std) ** 2).sum() ** 0.5)


@pytest.mark.parametrize("fixture", ["tiny", "tiny_text"])
def test_every_score_is_the_formula_on_latents_sampled_again(fixture: str, request: pytest.FixtureRequest) -> None:
    pipeline = request.getfixturevalue(fixture)
    probe = ldpruner.Probe(samples=3, steps=2)
    if fixture == "tiny":
        operators, scores = request.getfixturevalue("operators"), request.getfixturevalue("scores")
    else:
        operators = ldpruner.find_operators(pipeline)[::9]
        scores = score_all(pipeline, operators, probe)
    baseline = latents_of(pipeline, probe)
    candidates = [candidate for operator in operators for candidate in operator.candidates]
    assert len(scores.scores) == len(candidates)
    for candidate, score in zip(candidates, scores.scores, strict=True):
        with modified(pipeline.unet, [candidate.removal]):
            expected = paper_score(baseline, latents_of(pipeline, probe))
        assert (score.operator, score.modification) == (candidate.operator, candidate.modification)
        assert score.score == pytest.approx(expected, rel=1e-5)
        assert score.score > 0
        assert (score.samples, score.failure) == (probe.samples, None)


def test_a_score_says_what_the_removal_saves(scores: ldpruner.Scores) -> None:
    for one in scores.scores:
        assert one.savings.parameters == one.candidate.parameters
        assert one.savings.macs == one.candidate.macs
        assert one.savings.memory == 4 * one.savings.parameters  # float32
        assert 0 <= one.savings.latency_ms < scores.costs.denoiser_ms < scores.costs.latency_ms


def test_denoiser_calls_are_counted_for_each_sample(scores: ldpruner.Scores) -> None:
    assert scores.denoiser_calls == (1 + len(scores.scores)) * scores.probe.samples * scores.probe.steps


@pytest.mark.parametrize("metric", METRICS)
def test_another_metric_is_read_off_the_same_run(
    tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], tmp_path: Path, metric: Metric
) -> None:
    probe = ldpruner.Probe(samples=3, steps=1)
    first = score_all(tiny, operators[:2], probe, run=tmp_path)
    again = score_all(tiny, operators[:2], probe, run=tmp_path, metric=metric)
    assert again.denoiser_calls == first.denoiser_calls
    assert again.metric == metric
    assert all(math.isfinite(score) and score > 0 for score in values(again).values())
    assert (values(again) == values(first)) == (metric == "mean_std")


def test_scores_do_not_depend_on_the_batch_size(
    tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...]
) -> None:
    probe = ldpruner.Probe(samples=20, steps=2)
    chosen = operators[:: len(operators) // 3]
    one, seven, sixtyfour = (values(score_all(tiny, chosen, probe, batch_size=batch)) for batch in (1, 7, 64))
    assert one == pytest.approx(seven, rel=1e-4)
    assert one == pytest.approx(sixtyfour, rel=1e-4)


def test_scores_of_a_guided_transformer_do_not_depend_on_the_batch_size(tiny_transformer: DiffusionPipeline) -> None:
    probe = ldpruner.Probe(samples=5, steps=2)
    chosen = ldpruner.find_operators(tiny_transformer)[5:7]
    one, two, many = (values(score_all(tiny_transformer, chosen, probe, batch_size=batch)) for batch in (1, 2, 8))
    assert one == pytest.approx(two, rel=1e-4)
    assert one == pytest.approx(many, rel=1e-4)


def test_scores_do_not_depend_on_the_order_to_the_bit(
    tiny: DiffusionPipeline,
    operators: tuple[ldpruner.Operator, ...],
    probe: ldpruner.Probe,
    scores: ldpruner.Scores,
) -> None:
    backwards = score_all(tiny, operators[::-1], probe)
    assert [one.operator for one in backwards.scores] == [one.operator for one in scores.scores][::-1]
    assert values(backwards) == values(scores)


def test_modifications_are_scored_without_decoding(
    fresh: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], probe: ldpruner.Probe
) -> None:
    decoded: list[int] = []
    fresh.vqvae.decoder.register_forward_pre_hook(lambda *_: decoded.append(1))
    run_probe(fresh, probe, [0])
    assert decoded
    with ScoringRun(fresh, operators[:FEW], probe) as scoring:
        scoring.scores()  # measures costs: a call is timed as a whole
        decoded.clear()
        for _ in scoring:
            pass
        scoring.finish()
    assert decoded == []


@pytest.mark.case(number=8)
def test_what_was_measured_on_another_device_is_not_taken_up(
    tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], probe: ldpruner.Probe, tmp_path: Path
) -> None:
    with ScoringRun(tiny, operators[:FEW], probe, run=tmp_path) as scoring:
        scoring.scores()
        identity = scoring.store.fact("identity")
    for name, other in {"device": "cuda", "precision": "torch.float16", "versions": {"torch": "1"}}.items():
        with pytest.raises(RunStoreError, match=f"another {name}"):
            RunStore(tmp_path, {**identity, name: other})


def test_costs_are_measured_once_for_each_number_of_threads(
    tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], probe: ldpruner.Probe, tmp_path: Path
) -> None:
    def costs() -> Costs:
        with ScoringRun(tiny, operators[:FEW], probe, run=tmp_path) as scoring:
            return scoring.scores().costs

    first, threads = costs(), torch.get_num_threads()
    assert first.machine is not None
    assert (first.machine.device, first.machine.threads) == ("cpu", threads)
    assert costs() == first
    torch.set_num_threads(threads + 1)
    try:
        assert costs().machine == first.machine.replace(threads=threads + 1)
    finally:
        torch.set_num_threads(threads)


def test_plans_are_timed_once_for_the_same_scores(
    tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], tmp_path: Path
) -> None:
    def finished(samples: int) -> ldpruner.Scores:
        with ScoringRun(tiny, operators, ldpruner.Probe(samples=samples, steps=1), run=tmp_path) as scoring:
            for _ in scoring:
                pass
            return scoring.finish()

    curve = finished(1).latency_curve
    sums, saved = zip(*curve, strict=True)
    assert (curve[0], curve[-1]) == ((0, 0), (1, 1))
    assert len(curve) > 3
    assert list(sums) == sorted(sums)
    assert list(saved) == sorted(saved)
    assert finished(1).latency_curve == curve
    assert finished(2).latency_curve != curve


def test_a_run_is_an_iterable_with_a_length(
    tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], tmp_path: Path
) -> None:
    probe = ldpruner.Probe(samples=20, steps=1)
    for batch, batches in ((8, 3), (16, 2)):
        with ScoringRun(tiny, operators[:3], probe, run=tmp_path / str(batch), batch_size=batch) as scoring:
            assert len(scoring) == batches * 4 == len(list(scoring))
        with ScoringRun(tiny, operators[:3], probe, run=tmp_path / str(batch), batch_size=batch) as scoring:
            assert len(scoring) == len(list(scoring))


# Stopping and resuming


@contextlib.contextmanager
def at_call(denoiser: nn.Module, number: int, action: Callable[[], object]) -> Iterator[list[int]]:
    """Does something in the middle of the denoiser's n-th call from here; gives the rows of each call."""
    rows: list[int] = []

    def count(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        rows.append(len(given[0]))
        if len(rows) == number:
            action()

    handle = denoiser.register_forward_pre_hook(count)
    try:
        yield rows
    finally:
        handle.remove()


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def fail() -> None:
    raise ZeroDivisionError("in the middle")


class Snapshot:
    """What must be the same after scoring."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.pipeline = pipeline
        self.modules = dict(pipeline.unet.named_modules())
        self.weights = {name: weight.clone() for name, weight in pipeline.unet.state_dict().items()}
        self.output = self._output()
        self.image = self._image()

    def _output(self) -> torch.Tensor:
        with torch.no_grad():
            sample = self.pipeline.unet(torch.ones(1, 4, 8, 8), 7).sample
        assert isinstance(sample, torch.Tensor)
        return sample

    def _image(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        call: Any = self.pipeline
        return call(batch_size=1, num_inference_steps=1, generator=generator, output_type="np").images

    def check(self) -> None:
        pipeline = self.pipeline
        now = dict(pipeline.unet.named_modules())
        assert list(now) == list(self.modules)
        assert all(now[name] is self.modules[name] for name in now)
        assert all(torch.equal(weight, self.weights[name]) for name, weight in pipeline.unet.state_dict().items())
        for part in pipeline.components.values():
            assert not {"step", "decode", "forward"} & set(vars(part))
        every = [module for part in (pipeline.unet, pipeline.vqvae) for module in part.modules()]
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in every)
        assert type(pipeline) is LDMPipeline
        assert torch.equal(self._output(), self.output)
        np.testing.assert_array_equal(self._image(), self.image)


def test_scoring_leaves_the_pipeline_as_it_was(
    fresh: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], probe: ldpruner.Probe
) -> None:
    before = Snapshot(fresh)
    score_all(fresh, operators[:FEW], probe)
    before.check()


@pytest.mark.parametrize(
    ("stop", "error"),
    [(interrupt, KeyboardInterrupt), pytest.param(fail, ZeroDivisionError, marks=pytest.mark.extensive)],
)
@pytest.mark.parametrize(
    "number", [pytest.param(2, marks=pytest.mark.extensive), 9]
)  # among the baseline draws; within a modification
def test_a_stopped_run_leaves_the_pipeline_as_it_was_and_carries_on(
    fresh: DiffusionPipeline,
    operators: tuple[ldpruner.Operator, ...],
    tmp_path: Path,
    stop: Callable[[], None],
    error: type[BaseException],
    number: int,
) -> None:
    probe = ldpruner.Probe(samples=10, steps=2)  # batches of 8 and 2: four calls for each modification
    whole = score_all(fresh, operators[:FEW], probe, batch_size=8)
    before = Snapshot(fresh)
    with ScoringRun(fresh, operators[:FEW], probe, run=tmp_path, batch_size=8) as scoring:
        batches = iter(scoring)
        next(batches)  # the costs, and the first block
        with pytest.raises(error), at_call(fresh.unet, number, stop):
            list(batches)
    before.check()
    with (
        at_call(fresh.unet, -1, fail) as rows,
        ScoringRun(fresh, operators[:FEW], probe, run=tmp_path, batch_size=8) as scoring,
    ):
        recorded = len(rows)  # watching the first call took some
        list(scoring)
        finished = 2 + 2 * ((number - 1) // 2)  # calls of the batches that were complete
        assert len(rows) - recorded == 4 * (1 + FEW) - finished
        resumed = scoring.scores()
    assert values(resumed) == values(whole)
    assert resumed.denoiser_calls == whole.denoiser_calls
    before.check()


def test_a_finished_run_computes_nothing_again(
    fresh: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], probe: ldpruner.Probe, tmp_path: Path
) -> None:
    first = score_all(fresh, operators[:FEW], probe, run=tmp_path)
    with ScoringRun(fresh, operators[:FEW], probe, run=tmp_path) as scoring, at_call(fresh.unet, 1, fail) as rows:
        list(scoring)
        again = scoring.scores()
    assert rows == []
    assert again == first


def test_a_run_can_go_on_with_more_operators(
    tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], probe: ldpruner.Probe, tmp_path: Path
) -> None:
    first = score_all(tiny, operators[:3], probe, run=tmp_path)
    more = score_all(tiny, operators[:FEW], probe, run=tmp_path)
    assert more.denoiser_calls == first.denoiser_calls / 4 * (1 + FEW)
    assert values(first).items() <= values(more).items()


def test_a_run_can_go_on_with_more_samples(
    tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], tmp_path: Path
) -> None:
    few, many = ldpruner.Probe(samples=8, steps=1), ldpruner.Probe(samples=16, steps=1)
    whole = score_all(tiny, operators[:2], many, batch_size=8)
    first = score_all(tiny, operators[:2], few, run=tmp_path, batch_size=8)
    more = score_all(tiny, operators[:2], many, run=tmp_path, batch_size=8)
    assert values(more) == values(whole) != values(first)
    assert [one.samples for one in more.scores] == [16, 16]
    fewer = score_all(tiny, operators[:2], few, run=tmp_path, batch_size=8)  # what is there counts
    assert values(fewer) == values(whole)
    assert [score.samples for score in fewer.scores] == [16, 16]


@pytest.mark.extensive
def test_a_run_that_goes_on_with_more_samples_repeats_none(
    tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], tmp_path: Path
) -> None:
    calls = 0
    for samples in (3, 12, 14, 16):
        probe = ldpruner.Probe(samples=samples, steps=1)
        scores = score_all(tiny, operators[:1], probe, run=tmp_path, batch_size=8)
        assert values(scores) == pytest.approx(values(score_all(tiny, operators[:1], probe)), rel=1e-4)
        assert scores.denoiser_calls == 2 * samples  # baseline ones too
        calls = scores.denoiser_calls
    few = ldpruner.Probe(samples=12, steps=1)
    assert score_all(tiny, operators[:1], few, run=tmp_path, batch_size=8).denoiser_calls == calls


def test_baseline_samples_of_a_larger_probe_change_no_score(
    tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], tmp_path: Path
) -> None:
    few, many = ldpruner.Probe(samples=3, steps=1), ldpruner.Probe(samples=4, steps=1)
    first = score_all(tiny, operators[:2], few, run=tmp_path)
    with ScoringRun(tiny, operators[:2], many, run=tmp_path) as scoring:
        next(iter(scoring))
    assert values(score_all(tiny, operators[:2], few, run=tmp_path)) == values(first)


def test_what_diffusers_notes_beside_a_schedulers_settings_makes_no_other_run(
    fresh: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], probe: ldpruner.Probe, tmp_path: Path
) -> None:
    """It lists what a configuration leaves out in another order in each process."""
    for noted in (["clip_sample", "set_alpha_to_one"], ["set_alpha_to_one", "clip_sample"]):
        fresh.scheduler.register_to_config(_use_default_values=noted)
        ScoringRun(fresh, operators[:1], probe, run=tmp_path).store.close()
    fresh.scheduler.register_to_config(clip_sample=not fresh.scheduler.config.clip_sample)
    with pytest.raises(RunStoreError, match="another scheduler"):
        ScoringRun(fresh, operators[:1], probe, run=tmp_path)


def test_another_precision_is_another_run(tiny_transformer: DiffusionPipeline, tmp_path: Path) -> None:
    """Also where the weights are the same in both."""
    pipeline, probe = copy.deepcopy(tiny_transformer), ldpruner.Probe(samples=1, steps=1)
    ScoringRun(pipeline.to(torch.bfloat16), None, probe, run=tmp_path).store.close()
    with pytest.raises(RunStoreError, match="another precision"):
        ScoringRun(pipeline.to(torch.float32), None, probe, run=tmp_path)


@pytest.mark.parametrize(("first", "second"), [(8, 16), pytest.param(16, 8, marks=pytest.mark.extensive)])
def test_a_run_can_go_on_in_another_batch_size(
    fresh: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], tmp_path: Path, first: int, second: int
) -> None:
    probe = ldpruner.Probe(samples=20, steps=1)
    whole = score_all(fresh, operators[:2], probe, batch_size=8)
    with pytest.raises(ZeroDivisionError), at_call(fresh.unet, 2, fail):
        score_all(fresh, operators[:2], probe, run=tmp_path, batch_size=first)
    resumed = score_all(fresh, operators[:2], probe, run=tmp_path, batch_size=second)
    assert values(resumed) == pytest.approx(values(whole), rel=1e-4)
    assert resumed.denoiser_calls == whole.denoiser_calls


# What goes wrong


class Fragile(ModelMixin, ConfigMixin):
    """A denoiser one of whose parts is asked for an attribute, and one of whose parts keeps it from dividing by 0."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, sample_size: int = 8, in_channels: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, in_channels, 1)
        self.asked = nn.Conv2d(in_channels, in_channels, 1)
        self.needed = nn.Conv2d(in_channels, in_channels, 1)

    def forward(self, sample: torch.Tensor, timestep: Any) -> UNet2DOutput:
        scale = self.asked.weight.sum()
        hidden = self.stem(self.asked(sample)) * scale
        return UNet2DOutput(sample=hidden / (self.needed(hidden) - hidden))


@pytest.fixture
def fragile(tiny: DiffusionPipeline) -> DiffusionPipeline:
    torch.manual_seed(3)
    return LDMPipeline(tiny.vqvae, Fragile().eval(), DDIMScheduler(clip_sample=False))


def test_a_modification_that_the_denoiser_does_not_survive_is_recorded_and_the_run_goes_on(
    fragile: DiffusionPipeline, tmp_path: Path
) -> None:
    probe = ldpruner.Probe(samples=10, steps=2)
    scores = score_all(fragile, probe=probe, run=tmp_path, batch_size=8)
    of = {one.operator: one for one in scores.scores}
    assert list(of) == ["asked", "stem", "needed"]
    assert of["asked"].score == math.inf
    assert of["asked"].failure == "AttributeError: 'Identity' object has no attribute 'weight'"
    assert math.isfinite(of["stem"].score)
    assert of["stem"].samples == probe.samples
    resumed = score_all(fragile, probe=probe, run=tmp_path, batch_size=8)
    assert resumed == scores


def test_a_modification_with_latents_that_are_not_finite_scores_infinity_and_is_never_selected(
    fragile: DiffusionPipeline, tmp_path: Path
) -> None:
    probe = ldpruner.Probe(samples=10, steps=2)
    scores = score_all(fragile, probe=probe, run=tmp_path, batch_size=8)
    of = {one.operator: one for one in scores.scores}
    assert of["needed"].score == math.inf
    assert of["needed"].failure is None
    plan = ldpruner.select(scores, ldpruner.Budget(operators=1))
    assert [one.operator for one in plan.removed] == ["stem"]
    with pytest.raises(ldpruner.LdPrunerError):
        ldpruner.select(scores, ldpruner.Budget(operators=2))
    assert ldpruner.Scores.model_validate_json(scores.model_dump_json()) == scores


@pytest.mark.extensive
@pytest.mark.filterwarnings("ignore")  # diffusers' own: deprecated calls
def test_a_real_pipeline_goes_on_after_an_operator_that_cannot_go() -> None:
    """The pipeline of Stable Diffusion XL reads the size of a layer of the embedding."""
    family = FAMILIES["stable-diffusion-xl"]
    pipeline, probe = family.pipeline(), ldpruner.Probe(samples=2, steps=1, prompts=("a",), call=dict(family.call))
    names = ("add_embedding", "time_embedding.act")
    chosen = [one for one in ldpruner.find_operators(pipeline) if one.name in names]
    scores = {one.operator: one for one in score_all(pipeline, chosen, probe).scores}
    assert scores["add_embedding"].score == math.inf
    assert "linear_1" in (scores["add_embedding"].failure or "")
    assert math.isfinite(scores["time_embedding.act"].score)


def test_a_part_that_something_else_calls_is_left_alone(tiny_transformer: DiffusionPipeline) -> None:
    """The transformer of DiT calls the embedding in its first block's norm once more, for its last norm."""
    blocks = [one.name for one in ldpruner.find_operators(tiny_transformer) if one.module_type == "transformer_block"]
    assert blocks == ["transformer_blocks.1"]


def one_line(error: BaseException, *parts: str) -> bool:
    return "\n" not in str(error) and all(part in str(error) for part in parts)


def test_an_original_with_latents_that_are_not_finite_is_refused(
    fresh: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], probe: ldpruner.Probe
) -> None:
    with torch.no_grad():
        fresh.unet.conv_in.weight[0, 0, 0, 0] = math.nan
    with pytest.raises(NonFiniteLatents) as caught:
        score_all(fresh, operators[:1], probe)
    assert one_line(caught.value, "samples [0, 1, 2]")


def test_an_operator_of_another_pipeline_is_refused(
    tiny: DiffusionPipeline, tiny_text: DiffusionPipeline, probe: ldpruner.Probe
) -> None:
    foreign = next(one for one in ldpruner.find_operators(tiny_text) if one.module_type == "transformer_block")
    with pytest.raises(OperatorNotFound) as caught:
        score_all(tiny, [foreign], probe)
    assert one_line(caught.value, repr(foreign.name))


def scored(pipeline: DiffusionPipeline, probe: ldpruner.Probe, run: Path) -> ldpruner.Scores:
    return score_all(pipeline, ldpruner.find_operators(pipeline)[:1], probe, run=run)


@pytest.mark.parametrize(
    ("change", "seen"),
    [({"seed": 5}, '"seed": 5'), ({"steps": 1}, '"steps": 1')],
)
def test_the_store_of_another_probe_is_refused_and_the_message_says_what_differs(
    tiny: DiffusionPipeline, probe: ldpruner.Probe, tmp_path: Path, change: dict[str, int], seen: str
) -> None:
    scored(tiny, probe, tmp_path)
    with pytest.raises(RunStoreError) as caught:
        scored(tiny, probe.model_copy(update=change), tmp_path)
    assert one_line(caught.value, "run.sqlite", "probe", seen)


def test_the_store_of_another_checkpoint_is_refused(
    tiny: DiffusionPipeline, fresh: DiffusionPipeline, probe: ldpruner.Probe, tmp_path: Path
) -> None:
    scored(tiny, probe, tmp_path)
    with torch.no_grad():
        fresh.unet.conv_out.bias[0] += 1e-3
    with pytest.raises(RunStoreError) as caught:
        scored(fresh, probe, tmp_path)
    assert one_line(caught.value, "weights")


def test_the_store_of_another_architecture_is_refused(
    tiny: DiffusionPipeline, fresh: DiffusionPipeline, probe: ldpruner.Probe, tmp_path: Path
) -> None:
    scored(tiny, probe, tmp_path)
    config = {**tiny.unet.config, "layers_per_block": 2}
    fresh.register_modules(unet=UNet2DModel.from_config(config).eval())
    with pytest.raises(RunStoreError) as caught:
        scored(fresh, probe, tmp_path)
    assert one_line(caught.value, "architecture", "parameters")


def test_the_store_of_another_scheduler_is_refused(
    tiny: DiffusionPipeline, fresh: DiffusionPipeline, probe: ldpruner.Probe, tmp_path: Path
) -> None:
    scored(tiny, probe, tmp_path)
    fresh.register_modules(scheduler=DDIMScheduler(clip_sample=False, beta_schedule="scaled_linear"))
    with pytest.raises(RunStoreError) as caught:
        scored(fresh, probe, tmp_path)
    assert one_line(caught.value, "scheduler")


def test_a_full_disk_is_one_line_and_finished_samples_are_kept(
    fresh: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], tmp_path: Path
) -> None:
    probe = ldpruner.Probe(samples=10, steps=2)
    operators = operators[:16]
    whole = score_all(fresh, operators, probe)
    before = Snapshot(fresh)
    with ScoringRun(fresh, operators, probe, run=tmp_path) as scoring:
        (pages,) = scoring.store._database.execute("PRAGMA page_count").fetchone()
        scoring.store._database.execute(f"PRAGMA max_page_count = {pages + 20}").fetchone()
        with pytest.raises(StorageError) as caught:
            list(scoring)
        finished = scoring.store.denoiser_calls()
    assert one_line(caught.value, "run.sqlite", "full")
    assert 0 < finished < whole.denoiser_calls
    before.check()
    assert values(score_all(fresh, operators, probe, run=tmp_path)) == values(whole)


def test_sqlite_files_of_a_run_need_no_pickle(tiny: DiffusionPipeline, probe: ldpruner.Probe, tmp_path: Path) -> None:
    scored(tiny, probe, tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "run.sqlite")) as database:
        (mean,) = database.execute("SELECT mean FROM moments").fetchone()
    assert np.frombuffer(mean, np.float32).shape == (4 * 8 * 8,)


@pytest.mark.extensive
def test_what_does_not_fit_into_memory_is_sampled_in_smaller_batches(
    fresh: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...]
) -> None:
    probe = ldpruner.Probe(samples=8, steps=2)
    whole = score_all(fresh, operators[:FEW], probe, batch_size=2)
    seen = []

    def small_memory(_: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append(len(kwargs.get("sample", args[0] if args else None)))
        if seen[-1] > 3:
            raise torch.OutOfMemoryError("no memory left")

    handle = fresh.unet.register_forward_pre_hook(small_memory, with_kwargs=True)
    try:
        scores = score_all(fresh, operators[:FEW], probe, batch_size=8)
    finally:
        handle.remove()
    assert values(scores) == pytest.approx(values(whole), rel=1e-6)
    assert scores.denoiser_calls == whole.denoiser_calls
    assert [size for size in seen if size > 3] == [8, 4]


def test_a_single_sample_that_does_not_fit_into_memory_ends_the_run(
    fresh: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], probe: ldpruner.Probe
) -> None:
    with ScoringRun(fresh, operators[:1], probe) as scoring:
        handle = fresh.unet.register_forward_pre_hook(lambda *_: fail_for_memory())
        with pytest.raises(PipelineFailed, match="no memory left"):
            list(scoring)
        handle.remove()


def fail_for_memory() -> None:
    raise torch.OutOfMemoryError("no memory left")
