"""The live comparison without its page: the pipelines of a run folder, sampled one at a time."""

import threading
import time
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from pydantic import Field
from torch import nn

from ldpruner.errors import EvaluationError, PipelineFailed, ProbeError
from ldpruner.evaluation.samples import SampleBatch, sample_batch
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import StopPipeline
from ldpruner.pipelines.sampling import StepCallback
from ldpruner.progress import Progress, reported, unreported
from ldpruner.pruning.opening import open_pipeline
from ldpruner.run_folder import RunFolder

ORIGINAL = "original"
MAX_STEPS = 1000  # of one sample
MAX_PROMPT = 10_000  # characters
WARM_UP_STEPS = 2
POLL = 0.25  # seconds between two reports of the steps


class LiveProbe(Probe):
    """One sample, and its seed is that of the random generator: `torch.Generator().manual_seed(seed)`."""

    noun = "sample"

    steps: int = Field(default=25, ge=1, le=MAX_STEPS)

    def sample_seed(self, index: int) -> int:
        """The seed itself."""
        return self.seed


@dataclass(frozen=True)
class LiveSample:
    """A sample while it is made, and when it is there.

    Attributes:
        steps: how many are done.
        seconds: that the whole call took, decoding included.
        batch: the decoded sample; None until it is there.
    """

    steps: int
    seconds: float = 0.0
    batch: SampleBatch | None = None


class Live:
    """The original and the pruned pipelines of a run. Any thread may ask; one sample is made at a time.

    Attributes:
        model: the name of the original.
        run: the run folder.
        names: of the pipelines, the original first.
        probe: guidance and the other arguments of each call, and the default steps.
        prompt: of the probe's first sample; None if the pipelines take no prompt.
        has_sound: whether samples are sounds; else they are pictures or videos.
    """

    def __init__(
        self, pipelines: Mapping[str, DiffusionPipeline], probe: Probe, model: str, run: Path, *, has_sound: bool
    ) -> None:
        self.model, self.run, self.probe, self.has_sound = model, run, probe, has_sound
        self.names = tuple(pipelines)
        prompt = probe.arguments(pipelines[ORIGINAL], [0]).get("prompt")
        self.prompt = prompt if isinstance(prompt, str) else None
        self._pipelines = dict(pipelines)
        self._latest: dict[str, tuple[str, LiveSample]] = {}
        self._worker = ThreadPoolExecutor(1, "sampling")  # pipelines are not thread-safe
        self._closed = threading.Event()

    def request(self, prompt: str | None, seed: Any, steps: Any) -> LiveProbe:
        """The probe of one sample, checked.

        Raises:
            ProbeError: the prompt is too long, or a number is out of range.
        """
        if prompt is not None:
            _check_prompt(prompt)
        prompts = (prompt or "",) if prompt or self.prompt is not None else None
        fields = dict(self.probe.without("prompt") if prompts else self.probe)
        changes = {"samples": 1, "seed": seed, "steps": steps, "prompts": prompts, "categories": None}
        return LiveProbe(**{**fields, **changes})

    def sample(self, name: str, probe: LiveProbe) -> Generator[LiveSample, None, None]:
        """Samples a pipeline; reports the steps on the way, and yields the sample last.

        A caller that leaves early stops the pipeline after its current step. The latest sample of each pipeline is
        kept: the same request again takes no time.

        Raises:
            ProbeError: the pipeline does not take such a request.
            PipelineFailed: the pipeline fails.
        """
        steps: list[torch.Size] = []
        is_left = threading.Event()

        def on_step_end(latents: torch.Tensor) -> None:
            if is_left.is_set() or self._closed.is_set():
                raise StopPipeline
            steps.append(latents.shape)

        future = self._worker.submit(self._sample, name, probe, on_step_end)
        try:
            while wait([future], POLL).not_done:
                yield LiveSample(len(steps))
        finally:
            is_left.set()
            future.cancel()
        yield future.result()

    def close(self) -> None:
        """Stops sampling after the current step, for good."""
        self._closed.set()
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _sample(self, name: str, probe: LiveProbe, on_step_end: StepCallback) -> LiveSample:
        request = probe.model_dump_json()
        latest, sample = self._latest.get(name, ("", None))
        if sample is None or latest != request:
            sample = _timed(self._pipelines[name], probe, on_step_end)
            self._latest[name] = request, sample
        return sample


def open_live(
    run: Path | str,
    *,
    probe: Probe | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: Progress = unreported,
) -> Live:
    """Opens the original, the pruned and, if it is there, the recovered pipeline of a run folder.

    All of them share their networks except for the denoiser. Each is called for a few steps, so that the first
    comparison is not slower than the next.

    Args:
        run: the run folder.
        probe: guidance, and the other arguments of each call; None is the run's.
        device, dtype: see `open_pipeline`.

    Raises:
        PipelineNotFound: there is no pruned pipeline.
        RunStoreError: there is no run.
        EvaluationError: the pipelines make neither pictures nor sounds.
    """
    folder = RunFolder(run)
    scores = folder.scores()
    folder.check_pruned()
    original = folder.open_original(None, device, dtype, progress)
    shared = {
        name: part
        for name, part in original.components.items()
        if isinstance(part, nn.Module) and name != scores.component
    }
    pipelines = {ORIGINAL: original}
    for place in dict.fromkeys((folder.pruned, folder.latest())):
        pipelines[place.name] = _opened(place, device, dtype, shared, progress)
    chosen = probe if probe is not None else scores.probe
    batches = [_warmed_up(pipeline, chosen) for pipeline in progress(tuple(pipelines.values()), "warming up")]
    return Live(pipelines, chosen, folder.model(), folder.path, has_sound=_has_sound(batches[0]))


def _opened(
    place: Path, device: str | None, dtype: str | None, shared: Mapping[str, Any], progress: Progress
) -> DiffusionPipeline:
    return reported(progress, f"opening {place.name}", lambda: open_pipeline(place, device, dtype, **shared))


def _warmed_up(pipeline: DiffusionPipeline, probe: Probe) -> SampleBatch:
    """A sample of a few steps; of the probe's steps, where the pipeline fails with fewer."""
    try:
        return sample_batch(pipeline, probe.replace(steps=min(WARM_UP_STEPS, probe.steps)), [0])
    except PipelineFailed:
        return sample_batch(pipeline, probe, [0])


def _has_sound(batch: SampleBatch) -> bool:
    has_sound = batch.sounds is not None and batch.sampling_rate is not None
    if not has_sound and batch.pictures is None:
        raise EvaluationError("the pipeline makes neither pictures nor sounds; there is nothing to show or play")
    return has_sound


def _check_prompt(prompt: str) -> None:
    if len(prompt) > MAX_PROMPT:
        raise ProbeError(f"the prompt has {len(prompt)} characters; give at most {MAX_PROMPT}")
    if not prompt.isascii() and any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise ProbeError("the prompt holds half a character (a surrogate); write it again")


def _timed(pipeline: DiffusionPipeline, probe: LiveProbe, on_step_end: StepCallback) -> LiveSample:
    started = time.perf_counter()
    batch = sample_batch(pipeline, probe, [0], on_step_end=on_step_end)
    seconds = time.perf_counter() - started
    if not batch.samples:
        raise EvaluationError("sampling was stopped")
    return LiveSample(probe.steps, seconds, batch)
