"""Compiled pipelines are scored and pruned in eager mode, and stay compiled."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch._dynamo.utils import counters

import ldpruner
from ldpruner.errors import DenoiserNotFound
from ldpruner.evaluation.metrics import same_latents
from ldpruner.profiling.benchmark import compare

pytestmark = pytest.mark.extensive

FEW = 3  # operators


def in_place(pipeline: DiffusionPipeline) -> None:
    pipeline.unet.compile(backend="eager")


def wrapped(pipeline: DiffusionPipeline) -> None:
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")


@pytest.fixture(params=[in_place, pytest.param(wrapped, marks=pytest.mark.extensive)])
def compiled(request: Any, fresh: DiffusionPipeline) -> DiffusionPipeline:
    torch._dynamo.reset()
    request.param(fresh)
    counters.clear()
    return fresh


def test_scores_are_those_of_the_eager_pipeline_and_nothing_is_compiled(
    compiled: DiffusionPipeline, scores: ldpruner.Scores, probe: ldpruner.Probe
) -> None:
    operators = ldpruner.find_operators(compiled)
    compiled_scores = ldpruner.score_operators(compiled, operators[:FEW], probe, budgets=None).scores
    expected = {(score.operator, score.modification): score.score for score in scores.scores}
    assert all(score.score == expected[score.operator, score.modification] for score in compiled_scores)
    assert not counters["stats"]["unique_graphs"]


def test_a_compiled_pipeline_is_pruned_saved_and_stays_compiled(
    compiled: DiffusionPipeline, scores: ldpruner.Scores, probe: ldpruner.Probe, tmp_path: Path
) -> None:
    plan = ldpruner.select(scores, ldpruner.Budget(parameters=0.8))
    pruned = ldpruner.prune(compiled, plan)
    ldpruner.save(pruned, tmp_path / "pruned")
    assert same_latents(pruned, ldpruner.load(tmp_path / "pruned"), probe)
    assert compare({"original": compiled, "pruned": pruned}, probe, rounds=1).ratio > 0
    assert counters["stats"]["unique_graphs"]  # the benchmark runs the compiled network
    assert same_latents(ldpruner.prune_(compiled, plan), pruned, probe)


def test_a_compiled_pipeline_teaches_its_pruned_copy(
    compiled: DiffusionPipeline, scores: ldpruner.Scores, probe: ldpruner.Probe
) -> None:
    compiled(num_inference_steps=1)  # a network that is compiled already may not call later hooks
    pruned = ldpruner.prune(compiled, ldpruner.select(scores, ldpruner.Budget(parameters=0.8)))
    training = ldpruner.Training(max_train_steps=2, train_batch_size=2, lr_warmup_steps=1)
    history = ldpruner.finetune(pruned, compiled, probe=probe.replace(samples=6), training=training)
    assert history.steps == 2


def test_a_denoiser_that_holds_a_wrapped_module_is_refused(fresh: DiffusionPipeline) -> None:
    fresh.unet.mid_block = torch.compile(fresh.unet.mid_block, backend="eager")
    with pytest.raises(DenoiserNotFound, match=r"unet\.mid_block is wrapped by torch\.compile"):
        ldpruner.find_operators(fresh)
