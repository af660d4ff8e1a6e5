"""Stable Diffusion v1.4 with its published configurations and random weights, as the subject of a benchmark."""

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
from ldpruner.profiling.costs import timed_ms
from ldpruner.pruning.serialization import load_meta
from ldpruner.scoring.results import Scores
from ldpruner.scoring.runner import Scoring

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
        steps, planned_steps, scored_steps: of a draw; of those that plans are for; of those that are scored.
        rounds, pairs: of calls and of draws, one after the other; of scoring and of finetuning, in turn.
        modifications: that scoring is timed on.
        seconds: that scoring may take for a plan; else only large operators are scored.
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
class Subject:
    """The pipeline, and what several cells need of it."""

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
        """What each removal saves; nothing is drawn, so all are scored alike."""
        with Scoring(self.pipeline, self.operators, self.probe(self.extent.planned_steps)) as scoring:
            scores = scoring.scores()
        alike = tuple(one.model_copy(update={"score": 1.0}) for one in scores.scores)
        return scores.model_copy(update={"scores": alike})

    def milliseconds(self, run: Callable[[], Any], times: int) -> list[float]:
        """Of so many runs, after one that does not count."""
        return [timed_ms(run, self.device) for _ in range(times + 1)][1:]


def open_subject(device: torch.device, *, small: bool) -> Subject:
    """The pipeline of the published configurations, or of narrow ones, with random weights."""
    pipeline = load_meta(FOLDERS / MODEL)
    if device.type == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    for name, network in networks(pipeline).items():
        with device:
            drawn = _drawn(network, NARROW[name] if small else {})
        pipeline.register_modules(**{name: drawn.to(torch.float16 if device.type == "cuda" else torch.float32)})
    return Subject(pipeline, device, LITTLE if small else Extent())


def _drawn(network: Any, changes: Mapping[str, Any]) -> nn.Module:
    """A network of the same configuration, but for some changes, with random weights."""
    if isinstance(network, ModelMixin):
        found: nn.Module = type(network).from_config({**network.config, **changes})
    else:
        configuration = copy.deepcopy(network.config)
        configuration.update(changes)
        found = type(network)(configuration)
    return found.eval()
