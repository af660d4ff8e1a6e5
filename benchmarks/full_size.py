"""Stable Diffusion v1.4 with its published configuration files and random weights."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import nn

import ldpruner
from benchmarks.coverage import FOLDERS
from ldpruner.operators.discovery import Operator, operators_of
from ldpruner.pipelines.denoiser import Denoiser, find_denoiser
from ldpruner.pipelines.running import networks
from ldpruner.profiling.costs import elapsed_ms
from ldpruner.pruning.serialization import load_meta
from ldpruner.scoring.results import Scores
from ldpruner.scoring.runner import ScoringRun

MODEL = "stable-diffusion-v1-4"
GUIDANCE = 7.5
NARROW: Mapping[str, Mapping[str, Any]] = {
    "unet": {"block_out_channels": (32, 64, 128, 128), "sample_size": 8},
    "vae": {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
    "text_encoder": {"num_hidden_layers": 1},
}


@dataclass(frozen=True)
class Extent:
    """How much is measured.

    Attributes:
        steps, planned_steps, scored_steps: denoising steps to time, to plan for, and to score with.
        rounds, pairs: timings of calls, and of scoring and finetuning in turn with a bare loop.
        modifications: how many are timed.
        seconds: limit of scoring for a plan; beyond it only large operators are scored.
        backend: of torch.compile.
    """

    steps: int = 25
    planned_steps: int = 10
    scored_steps: int = 4
    rounds: int = 9
    pairs: int = 3
    modifications: int = 40
    seconds: float = 40.0
    backend: str = "inductor"


LITTLE = Extent(3, planned_steps=3, scored_steps=2, rounds=2, pairs=1, modifications=3, seconds=0.0, backend="eager")


@dataclass(frozen=True)
class FullSizeModel:
    """The pipeline, and what several cells share."""

    pipeline: DiffusionPipeline
    device: torch.device
    extent: Extent

    def probe(self, steps: int) -> ldpruner.Probe:
        """One sample, not decoded."""
        call = {"output_type": "latent"}
        return ldpruner.Probe(samples=1, steps=steps, prompts=("a dog",), guidance=GUIDANCE, call=call)

    @cached_property
    def denoiser(self) -> Denoiser:
        probe = self.probe(self.extent.planned_steps)
        return find_denoiser(self.pipeline, None, probe.arguments(self.pipeline, [0]))

    @cached_property
    def operators(self) -> tuple[Operator, ...]:
        return operators_of(self.denoiser)

    @cached_property
    def profile(self) -> Scores:
        """The savings of each removal, all with the score 1: nothing is sampled."""
        with ScoringRun(self.pipeline, self.operators, self.probe(self.extent.planned_steps)) as scoring:
            scores = scoring.scores()
        equal = tuple(score.replace(score=1.0) for score in scores.scores)
        return scores.replace(scores=equal)

    def milliseconds(self, run: Callable[[], Any], times: int) -> list[float]:
        """The time of each run, after one that does not count."""
        return [elapsed_ms(run, self.device) for _ in range(times + 1)][1:]


def open_full_size(device: torch.device, *, small: bool) -> FullSizeModel:
    """The pipeline of the published configurations, or of narrow ones if `small`."""
    pipeline = load_meta(FOLDERS / MODEL)
    if device.type == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    for name, network in networks(pipeline).items():
        with device:
            filled = _with_random_weights(network, NARROW[name] if small else {})
        pipeline.register_modules(**{name: filled.to(torch.float16 if device.type == "cuda" else torch.float32)})
    return FullSizeModel(pipeline, device, LITTLE if small else Extent())


def _with_random_weights(network: Any, changes: Mapping[str, Any]) -> nn.Module:
    """A network of the same configuration, with some changes."""
    if isinstance(network, ModelMixin):
        copied: nn.Module = type(network).from_config({**network.config, **changes})
    else:
        configuration = copy.deepcopy(network.config)
        configuration.update(changes)
        copied = type(network)(configuration)
    return copied.eval()
