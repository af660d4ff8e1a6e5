"""Samples latents: a pipeline runs until its last step. Nothing is decoded."""

import contextlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from diffusers import DiffusionPipeline

from ldpruner.errors import PipelineFailed, ProbeError, one_line
from ldpruner.pipelines.patches import patched
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import StopPipeline, networks, run_pipeline, schedulers

BATCH_SIZE = 16  # samples in one batch
# What a pipeline raises for arguments that it cannot use, and a network that was modified.
FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError)
MAX_BATCH_DIFFERENCE = 0.05  # relative difference of a sample alone and in a batch; rounding makes less

StepCallback: TypeAlias = Callable[[torch.Tensor], None]


def sample_latents(
    pipeline: DiffusionPipeline, probe: Probe, samples: Sequence[int], on_step_end: StepCallback | None = None
) -> torch.Tensor:
    """Samples latents [samples, ...] of a probe by index. The pipeline is stopped before it decodes anything.

    `on_step_end` is called with the latents after each step; it may raise StopPipeline.

    Raises:
        ProbeError: the pipeline returns another number of samples.
    """
    return _sample(pipeline, probe, samples, on_step_end)[0]


def sample_decoded(
    pipeline: DiffusionPipeline, probe: Probe, samples: Sequence[int], on_step_end: StepCallback | None = None
) -> tuple[torch.Tensor, Any]:
    """Samples latents as `sample_latents` does, and also returns the pipeline's own output, such as images.

    The output is None if `on_step_end` has stopped the pipeline.
    """
    return _sample(pipeline, probe.without("output_type"), samples, on_step_end, decodes=True)


def largest_batch(pipeline: DiffusionPipeline, probe: Probe, limit: int) -> int:
    """How many samples a batch can hold without one changing another: `limit` or 1.

    Some pipelines take no batches, share the encoding of an image or a text among samples, or use the global random
    state. To see, two samples are sampled together and alone.
    """
    if min(limit, probe.samples) == 1:
        return 1
    alone = torch.cat([sample_latents(pipeline, probe, [index]) for index in (0, 1)]).double()
    try:
        together = sample_latents(pipeline, probe, [0, 1]).double()
    except Exception:  # noqa: BLE001  (a pipeline fails in its own way; one sample worked)
        return 1
    if together.shape != alone.shape:
        return 1
    is_same = (together - alone).norm() <= MAX_BATCH_DIFFERENCE * alone.norm()
    return limit if is_same or not alone.isfinite().all() else 1


def run_probe(pipeline: DiffusionPipeline, probe: Probe, samples: Sequence[int], **options: Any) -> Any:
    """Runs a pipeline on some samples of a probe with the options of `run_pipeline`, and returns its output.

    Raises:
        PipelineFailed: it cannot be run with the arguments of the probe.
    """
    arguments = probe.arguments(pipeline, samples)
    try:
        return run_pipeline(pipeline, arguments, **options)
    except FAILURES as error:
        raise PipelineFailed(
            f"{type(pipeline).__name__} could not be run with {sorted(arguments)}: {one_line(error)}; "
            "check the arguments of its call"
        ) from error


def _sample(
    pipeline: DiffusionPipeline,
    probe: Probe,
    samples: Sequence[int],
    on_step_end: StepCallback | None = None,
    *,
    decodes: bool = False,
) -> tuple[torch.Tensor, Any]:
    recorder = _StepRecorder(len(samples), on_step_end)
    with contextlib.ExitStack() as stack:
        for scheduler in schedulers(pipeline):
            stack.enter_context(patched(scheduler, step=recorder.recorded(scheduler.step)))
        for network in networks(pipeline).values():
            if hasattr(network, "decode"):
                decode = recorder.before_decoding(network.decode if decodes else None)
                stack.enter_context(patched(network, decode=decode))
        output = run_probe(pipeline, probe, samples, seed=probe.sample_seed(samples[0]))
    latents = recorder.latents()
    if latents is None:
        raise ProbeError(
            f"{type(pipeline).__name__} did not return {len(samples)} samples; "
            f"check the probe's call arguments {sorted(probe.call)}"
        )
    return latents, output


class _StepRecorder:
    """Keeps the first input and the last output of a pipeline's schedulers; else what is decoded.

    Some pipelines step copies of their scheduler, one for each frame, and put the latents together themselves.
    """

    def __init__(self, samples: int, on_step_end: StepCallback | None) -> None:
        self._samples, self._on_step_end = samples, on_step_end
        self._first: torch.Tensor | None = None
        self._last: torch.Tensor | None = None

    def recorded(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A scheduler's step, recorded."""
        signature = inspect.signature(step)

        def recorded_step(*args: Any, **kwargs: Any) -> Any:
            output = step(*args, **kwargs)
            if self._first is None:
                self._first = signature.bind(*args, **kwargs).arguments.get("sample")
            self._last = output[0] if isinstance(output, tuple) else output.prev_sample
            if self._on_step_end is not None and (latents := self.latents()) is not None:
                self._on_step_end(latents)
            return output

        return recorded_step

    def before_decoding(self, decode: Any) -> Callable[..., Any]:
        """An autoencoder's `decode`, recorded; None stops the pipeline instead."""

        def recorded_decode(*args: Any, **kwargs: Any) -> Any:
            if self._last is None:
                self._last = next(
                    (value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None
                )
            if decode is None:
                raise StopPipeline
            return decode(*args, **kwargs)

        return recorded_decode

    def latents(self) -> torch.Tensor | None:
        """The last latents [samples, ...]; None if their rows cannot be assigned to samples.

        Some pipelines step the guided and the unguided copy of all samples as one batch; others step the frames of a
        video as rows.
        """
        first, last, samples = self._first, self._last, self._samples
        if last is None or len(last) % samples:
            return None
        if len(last) == samples or first is None:
            return last[:samples]
        if torch.equal(first[:samples], first[samples : 2 * samples]):
            return last[:samples]
        return last.reshape(samples, -1, *last.shape[1:])
