"""Drawing latents: a pipeline runs until its last step. Nothing is decoded."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from diffusers import DiffusionPipeline

from ldpruner.errors import ProbeError
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import (
    StopPipeline,
    keeping_precision,
    networks,
    overridden,
    run_pipeline,
    schedulers,
    stepping,
)

BATCH_SIZE = 16  # samples drawn at once
ALIKE = 0.05  # relative difference of a sample drawn alone and in a batch, more than rounding makes


Watch: TypeAlias = Callable[[torch.Tensor], None]


def draw_latents(
    pipeline: DiffusionPipeline, probe: Probe, samples: Sequence[int], watch: Watch | None = None
) -> torch.Tensor:
    """Runs a pipeline on some samples of a probe and returns their final latents.

    The run is left before anything is decoded.

    Args:
        pipeline: which.
        probe: what samples there are.
        samples: which are drawn.
        watch: is given the latents [samples, ...] after each step; a StopPipeline that it raises ends the run there.

    Returns:
        [samples, ...]: what the scheduler's last step returned.

    Raises:
        ProbeError: the pipeline drew fewer samples than asked.
    """
    with contextlib.ExitStack() as stack:
        for part in networks(pipeline).values():
            if hasattr(part, "decode"):
                stack.enter_context(keeping_precision(part))
                stack.enter_context(overridden(part, "decode", _leave))
        return _watched(pipeline, probe, samples, watch)[0]


def draw_decoded(pipeline: DiffusionPipeline, probe: Probe, samples: Sequence[int]) -> tuple[torch.Tensor, Any]:
    """Runs a pipeline to its end: the final latents, and what the pipeline made of them.

    Raises:
        ProbeError: the pipeline drew fewer samples than asked.
    """
    return _watched(pipeline, probe.without("output_type"), samples)


def _watched(
    pipeline: DiffusionPipeline, probe: Probe, samples: Sequence[int], watch: Watch | None = None
) -> tuple[torch.Tensor, Any]:
    taken = _Steps(len(samples), watch)
    with contextlib.ExitStack() as stack:
        for scheduler in schedulers(pipeline):
            stack.enter_context(stepping(scheduler, taken.step_of(scheduler)))
        stack.enter_context(_seeded(pipeline, probe.sample_seed(samples[0])))
        result = run_pipeline(pipeline, probe.arguments(pipeline, samples))
    drawn = taken.latents()
    if drawn is None:
        raise ProbeError(
            f"{type(pipeline).__name__} did not draw the {len(samples)} samples that were asked; "
            f"look at the probe's call arguments {sorted(probe.call)}"
        )
    return drawn, result


def largest_batch(pipeline: DiffusionPipeline, probe: Probe, wanted: int) -> int:
    """How many samples can be drawn at once without one changing another: `wanted`, or 1.

    Some pipelines take no batches, share an image's or a text's encoding among samples, or draw from the global random
    state. Two samples are drawn together and alone to see.
    """
    if min(wanted, probe.samples) == 1:
        return 1
    alone = torch.cat([draw_latents(pipeline, probe, [index]) for index in (0, 1)]).double()
    try:
        together = draw_latents(pipeline, probe, [0, 1]).double()
    except Exception:  # noqa: BLE001  (whatever it cannot do with two samples, it did with one)
        return 1
    if together.shape != alone.shape:
        return 1
    return wanted if (together - alone).norm() <= ALIKE * alone.norm() or not alone.isfinite().all() else 1


class _Steps:
    """What the schedulers of a pipeline were given first and returned last."""

    def __init__(self, samples: int, watch: Watch | None) -> None:
        self._samples, self._watch = samples, watch
        self._first: torch.Tensor | None = None
        self._last: torch.Tensor | None = None

    def step_of(self, scheduler: Any) -> Callable[..., Any]:
        """A `step` that does what the scheduler's own does, and is watched; copies of the scheduler are not."""
        original = type(scheduler).step
        signature = inspect.signature(original)

        def step(self_: Any, *arguments: Any, **options: Any) -> Any:
            result = original(self_, *arguments, **options)
            if self_ is scheduler:
                if self._first is None:
                    self._first = signature.bind(self_, *arguments, **options).arguments.get("sample")
                self._last = result[0] if isinstance(result, tuple) else result.prev_sample
                if self._watch is not None and (drawn := self.latents()) is not None:
                    self._watch(drawn)
            return result

        return step

    def latents(self) -> torch.Tensor | None:
        """The last latents, a row for each sample.

        Some pipelines step the guided and the unguided copy of each sample together, copies after one another; others
        step the frames of a video as rows.
        """
        first, last, samples = self._first, self._last, self._samples
        if last is None or len(last) % samples:
            return None
        if len(last) == samples or first is None:
            return last[:samples]
        if torch.equal(first[:samples], first[samples : 2 * samples]):
            return last[:samples]
        return last.reshape(samples, -1, *last.shape[1:])


def _leave(*_: Any, **__: Any) -> None:
    raise StopPipeline


@contextlib.contextmanager
def _seeded(pipeline: DiffusionPipeline, seed: int) -> Iterator[None]:
    """Gives the global random state a seed for a while: some pipelines draw from it beside their generator."""
    device = pipeline.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
