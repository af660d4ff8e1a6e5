"""Sampling for scores. What is to be sampled is a value, so that this process can do it, or many others."""

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

from ldpruner.errors import PipelineFailed, is_out_of_memory, one_line
from ldpruner.operators.discovery import Removal
from ldpruner.operators.patching import MISFITS, modified
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.prompt_cache import CallCache
from ldpruner.pipelines.running import networks
from ldpruner.pipelines.sampling import sample_latents
from ldpruner.scoring.importance import Floats

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Task:
    """Samples of one modification, or of the baseline.

    Attributes:
        component: the denoiser's name in the pipeline.
        probe: what samples there are.
        removal: what is modified; nothing if None.
        samples: which samples of the probe.
        batch: how many at once, where memory allows.
    """

    component: str
    probe: Probe
    removal: Removal | None
    samples: tuple[int, ...]
    batch: int


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a task.

    Attributes:
        calls: of the denoiser, for each sample.
        latents: [samples, ...] after the last step.
        failure: why there are none.
    """

    calls: int = 0
    latents: Floats | None = None
    failure: str | None = None


class Executor(Protocol):
    """Does tasks, here or elsewhere."""

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Outcome]]:
        """Each task with its outcome, in any order. A task is taken only when there is a worker for it.

        Args:
            tasks: of the same pipeline.
        """
        ...


class LocalExecutor:
    """Does tasks in this process, one after the other."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self._worker = Worker(pipeline)

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Outcome]]:
        for task in tasks:
            yield task, self._worker(task)


class Worker:
    """A pipeline that does tasks."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.pipeline = pipeline
        self._largest = math.inf  # batch that memory was enough for
        self._cache = CallCache()

    def __call__(self, task: Task) -> Outcome:
        """Samples what a task says.

        Raises:
            PipelineFailed: the original fails, or a single sample takes too much memory.
        """
        network = networks(self.pipeline)[task.component]
        try:
            with modified(network, [task.removal] if task.removal is not None else []):
                return self._sample(network, task)
        except MISFITS as error:
            if task.removal is None or is_out_of_memory(error):
                raise
            self._latents(task, [0])  # raises if it is not the modification's fault
            return Outcome(failure=one_line(error.__cause__ or error))

    def _sample(self, network: nn.Module, task: Task) -> Outcome:
        size = int(min(task.batch, self._largest, len(task.samples)))
        try:
            return self._sample_by(size, network, task)
        except (RuntimeError, PipelineFailed) as error:
            if not is_out_of_memory(error) or size == 1:
                raise
        self._largest = -(-size // 2)
        logger.info("out of memory: going on with %d samples at once", self._largest)
        return self._sample(network, task)

    def _sample_by(self, size: int, network: nn.Module, task: Task) -> Outcome:
        batches = [task.samples[start : start + size] for start in range(0, len(task.samples), size)]
        with _counted_calls(network) as calls:
            latents = torch.cat([self._latents(task, batch) for batch in batches])
            each = next(calls) // len(batches)
        return Outcome(each, np.asarray(latents.detach().cpu().double().numpy()))

    def _latents(self, task: Task, samples: Sequence[int]) -> torch.Tensor:
        with self._cache.before_denoising(self.pipeline, task.component):
            return sample_latents(self.pipeline, task.probe, samples)


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
