"""Executing draws. What is to be drawn is a value, so that this process can do it, or many others."""

import contextlib
import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import nn

from ldpruner.errors import one_line
from ldpruner.operators.discovery import Removal
from ldpruner.operators.patching import MISFITS, is_out_of_memory, modified
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.prompt_cache import CallCache
from ldpruner.pipelines.running import StopPipeline, networks
from ldpruner.pipelines.sampling import StepCallback, sample_latents
from ldpruner.scoring.blocks import FEWEST
from ldpruner.scoring.importance import Floats
from ldpruner.scoring.looks import look

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Task:
    """Samples to draw, or to look at.

    Attributes:
        component: the denoiser's name in the pipeline.
        probe: what samples there are.
        removal: what is modified; nothing if None.
        samples: which are drawn.
        batch: how many at once, where memory allows.
        limit: the mean squared distance from the untouched path beyond which drawing is stopped.
        looks: removals to look at on one untouched sample, instead of drawing.
    """

    component: str
    probe: Probe
    removal: Removal | None
    samples: tuple[int, ...]
    batch: int
    limit: float = math.inf
    looks: tuple[Removal, ...] = ()

    @property
    def size(self) -> int:
        """How much there is to do, in draws of a sample, roughly."""
        return len(self.looks) or len(self.samples)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a task.

    Attributes:
        calls: of the denoiser, for each sample.
        latents: [samples, ...] after the last step; when stopped, those of the first samples after the step `stopped`.
        path: [steps, samples, ...] the latents of the first samples after each step, of an untouched draw, where there
            is such an array.
        stopped: the step after which drawing was stopped.
        effects: [removals] what `look` saw.
        failure: why nothing could be drawn.
    """

    calls: int = 0
    latents: Floats | None = None
    path: Floats | None = None
    stopped: int | None = None
    effects: Floats | None = None
    failure: str | None = None


class Executor(Protocol):
    """Does tasks, here or elsewhere."""

    def run(self, tasks: Iterable[Task], path: Floats | None = None) -> Iterator[tuple[Task, Outcome]]:
        """Each task with its outcome, in any order. A task is taken only when there is a worker for it.

        Args:
            tasks: the same pipeline's.
            path: [steps, samples, ...] the untouched latents after each step, for tasks with a limit.
        """
        ...


class LocalExecutor:
    """Does tasks in this process, one after the other."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self._worker = Worker(pipeline)

    def run(self, tasks: Iterable[Task], path: Floats | None = None) -> Iterator[tuple[Task, Outcome]]:
        for task in tasks:
            yield task, self._worker(task, path)


class Worker:
    """A pipeline that tasks are done with."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.pipeline = pipeline
        self._largest = math.inf  # batch that memory was enough for
        self._reuse = CallCache()

    def __call__(self, task: Task, path: Floats | None = None) -> Outcome:
        """Draws what a task says.

        Raises:
            OutOfMemoryError: a single sample is too much.
            Exception: the pipeline's own, where it fails untouched.
        """
        network = networks(self.pipeline)[task.component]
        if task.looks:
            return self._looked(network, task)
        try:
            with modified(network, [task.removal] if task.removal is not None else []):
                return self._drawn(network, task, path)
        except MISFITS as error:
            if task.removal is None or is_out_of_memory(error):
                raise
            self._latents(task, [0])  # raises if it is not the modification's fault
            return Outcome(failure=one_line(error))

    def _looked(self, network: nn.Module, task: Task) -> Outcome:
        (sample,) = task.samples
        with _counted_calls(network) as calls, self._reuse.before_denoising(self.pipeline, task.component):
            effects = look(self.pipeline, task.component, task.probe, sample, task.looks)
            return Outcome(next(calls), effects=effects)

    def _drawn(self, network: nn.Module, task: Task, path: Floats | None) -> Outcome:
        size = int(min(task.batch, self._largest, len(task.samples)))
        try:
            return self._drawn_by(size, network, task, path)
        except RuntimeError as error:
            if not is_out_of_memory(error) or size == 1:
                raise
        self._largest = -(-size // 2)
        logger.info("out of memory: going on with %d samples at once", self._largest)
        return self._drawn(network, task, path)

    def _drawn_by(self, size: int, network: nn.Module, task: Task, path: Floats | None) -> Outcome:
        first, *others = (task.samples[start : start + size] for start in range(0, len(task.samples), size))
        watch = _Watch(path, task.limit, keeps=task.removal is None)
        with _counted_calls(network) as calls:
            drawn = [self._latents(task, first, watch)]
            if watch.stopped is not None:
                return Outcome(next(calls), _floats(drawn[0][: watch.samples]), stopped=watch.stopped)
            drawn += [self._latents(task, batch) for batch in others]
            each = next(calls) // len(drawn)
        return Outcome(each, _floats(torch.cat(drawn)), watch.way if task.removal is None else None)

    def _latents(self, task: Task, samples: Sequence[int], watch: StepCallback | None = None) -> torch.Tensor:
        with self._reuse.before_denoising(self.pipeline, task.component):
            return sample_latents(self.pipeline, task.probe, samples, watch)


class _Watch:
    """Looks at the first samples after each step, and stops what has left their path; if it `keeps`, shows the way."""

    def __init__(self, path: Floats | None, limit: float, *, keeps: bool) -> None:
        self.path, self.limit, self.keeps = path if limit < math.inf else None, limit, keeps
        self.samples = FEWEST if path is None else path.shape[1]
        self.seen: list[Floats] = []
        self.stopped: int | None = None

    @property
    def way(self) -> Floats | None:
        """[steps, samples, ...] all that was seen; None where a pipeline steps latents of several shapes."""
        return np.stack(self.seen) if len({one.shape for one in self.seen}) == 1 else None

    def __call__(self, latents: torch.Tensor) -> None:
        if self.path is None and not self.keeps:
            return  # to look is to wait for the device
        self.seen.append(_floats(latents[: self.samples]))
        step = len(self.seen) - 1
        if self.path is None or step >= len(self.path) - 1:
            return
        seen = self.seen[-1]
        if not np.square(seen - self.path[step, : len(seen)]).mean() <= self.limit:  # nor is it a number
            self.stopped = step
            raise StopPipeline


def _floats(latents: torch.Tensor) -> Floats:
    return np.asarray(latents.detach().cpu().double().numpy())


@contextlib.contextmanager
def _counted_calls(network: nn.Module) -> Iterator[Iterator[int]]:
    """A counter that stands at the number of calls so far."""
    calls = itertools.count()

    def count(*_: Any) -> None:
        next(calls)

    handle = network.register_forward_pre_hook(count)
    try:
        yield calls
    finally:
        handle.remove()
