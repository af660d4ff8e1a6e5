"""Executing draws on a Ray cluster, or on this machine's own workers. Nothing else imports ray."""

import itertools
import logging
import math
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
import torch
from diffusers import DiffusionPipeline

from ldpruner.errors import ExecutionError, one_line
from ldpruner.scoring.importance import Floats
from ldpruner.scoring.worker import Outcome, Task, Worker

POLL = 1.0  # seconds between two looks at which workers there are
PATIENCE = 60.0  # seconds that a task may take, whatever others took
SLOWEST = 20.0  # times the slowest task so far, a worker is taken for hanging
TRIES = 3  # workers that may die over a task

logger = logging.getLogger(__name__)


@dataclass
class _Job:
    """What a worker does: opens the pipeline, or a task."""

    worker: Any
    task: Task | None
    started: float


class RayExecutor:
    """Does tasks on workers that each open the pipeline once. Workers may come, go, hang, or be killed.

    Args:
        opener: opens the pipeline in a worker, on the worker's own device.
        address: of a Ray cluster; None starts workers on this machine.
        cpus: that a worker needs, and computes with.
        gpus: that a worker needs; None is one where the cluster has any.
        patience: seconds that a task may take, however fast others were.

    Raises:
        ExecutionError: there is no such cluster.
    """

    def __init__(
        self,
        opener: Callable[[], DiffusionPipeline],
        address: str | None = None,
        *,
        cpus: int = 1,
        gpus: float | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self._started = not ray.is_initialized()
        if self._started:
            _connect(address)
        has_gpus = _resources().get("GPU", 0) > 0
        self._needs = {"CPU": float(cpus), "GPU": float(has_gpus) if gpus is None else gpus}
        self._opener, self._patience = ray.put(opener), patience
        self._remote: Any = ray.remote(num_cpus=cpus, num_gpus=self._needs["GPU"])(_Worker)
        self._jobs: dict[Any, _Job] = {}
        self._idle: list[Any] = []
        self._losses: Counter[Task | None] = Counter()
        self._slowest = 0.0  # seconds, by the size of the task
        self._hired = -math.inf  # when workers were last looked for

    def __enter__(self) -> "RayExecutor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets all workers go."""
        for worker in [*self._idle, *(job.worker for job in self._jobs.values())]:
            ray.kill(worker)
        self._idle, self._jobs = [], {}
        if self._started:
            ray.shutdown()

    def run(self, tasks: Iterable[Task], path: Floats | None = None) -> Iterator[tuple[Task, Outcome]]:
        """Each task with its outcome, in the order in which they come.

        Raises:
            ExecutionError: workers die again and again, over one task or before they can do any.
            Exception: the pipeline's own, where it fails untouched.
        """
        for job in self._jobs.values():  # of a run that was left
            job.task = None
        queue, shared, finished = _Queue(tasks), ray.put(path), deque[tuple[Task, Outcome]]()
        while queue or finished or any(job.task for job in self._jobs.values()):
            self._hire(queue)
            try:
                self._collect(finished, queue, 0 if finished or (self._idle and queue) else POLL)
            except Exception:
                yield from finished  # what others have done is not lost with what failed
                raise
            self._give_out(queue, shared)  # before each outcome, so that no worker waits for what is done with them
            if finished:
                yield finished.popleft()

    def _hire(self, queue: "_Queue") -> None:
        """As many workers as the cluster has room for, one at least: a cluster that can grow does so when asked."""
        if not queue or time.monotonic() < self._hired + POLL:
            return
        self._hired = time.monotonic()
        there = _resources()
        room = min(int(there.get(name, 0) // need) for name, need in self._needs.items() if need)
        for _ in range(max(1, room) - len(self._idle) - len(self._jobs)):
            worker = self._remote.remote()
            self._jobs[worker.open.remote(self._opener, self._needs["CPU"])] = _Job(worker, None, time.monotonic())

    def _give_out(self, queue: "_Queue", path: Any) -> None:
        while self._idle and (task := queue.take()) is not None:
            worker = self._idle.pop()
            self._jobs[worker.draw.remote(task, path)] = _Job(worker, task, time.monotonic())

    def _collect(self, finished: deque[tuple[Task, Outcome]], queue: "_Queue", timeout: float) -> None:
        """Adds what is finished, after some seconds at most; a task that a worker was lost over is done by another."""
        running, waiting = list(self._jobs), list(self._idle)
        ray.wait(running, timeout=timeout)  # for the first one
        done, _ = ray.wait(running, num_returns=max(1, len(running)), timeout=0)
        failure: Exception | None = None
        for reference in done:
            job = self._jobs.pop(reference)
            try:
                outcome = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                failure = error.as_instanceof_cause()  # type: ignore[no-untyped-call]
                continue
            except ray.exceptions.RayError as error:  # the worker died, its memory ran out, its node is gone
                self._lose(job, queue, one_line(error))
                self._let_go(waiting)
                continue
            self._idle.append(job.worker)
            if job.task is None:
                self._losses[None] = 0  # it can be opened
            else:
                self._slowest = max(self._slowest, (time.monotonic() - job.started) / job.task.size)
                finished.append((job.task, outcome))
        if failure is not None:
            raise failure
        self._dismiss_hanging(queue)

    def _dismiss_hanging(self, queue: "_Queue") -> None:
        for reference, job in list(self._jobs.items()):
            if job.task is None or not self._slowest:
                continue
            allowed = max(self._patience, SLOWEST * self._slowest * job.task.size)
            if time.monotonic() - job.started > allowed:
                ray.kill(job.worker)
                del self._jobs[reference]
                self._lose(job, queue, f"no answer for {allowed:.0f} seconds")

    def _let_go(self, waiting: list[Any]) -> None:
        """Ends workers that had nothing to do while another was lost: perhaps they are lost too, which nobody saw."""
        for worker in waiting:
            if worker in self._idle:
                self._idle.remove(worker)
                ray.kill(worker)

    def _lose(self, job: _Job, queue: "_Queue", reason: str) -> None:
        logger.info("a worker is lost: %s", reason)
        self._losses[job.task] += 1
        others_work = job.task is None and (self._idle or any(one.task for one in self._jobs.values()))
        if self._losses[job.task] > TRIES and not others_work:
            what = f"drawing {job.task.removal or 'untouched samples'}" if job.task else "opening the pipeline"
            raise ExecutionError(f"{TRIES + 1} workers were lost over {what}; the last one: {reason}")
        if job.task is not None:
            queue.put_back(job.task)


class _Queue:
    """Tasks that no worker has; the one that comes next is known, and no further one is asked for."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = iter(tasks)
        self._next = deque(itertools.islice(self._tasks, 1))

    def __bool__(self) -> bool:
        return bool(self._next)

    def take(self) -> Task | None:
        task = self._next.popleft() if self._next else None
        if not self._next:
            self._next.extend(itertools.islice(self._tasks, 1))
        return task

    def put_back(self, task: Task) -> None:
        self._next.appendleft(task)


class _Worker:
    """What runs in a worker's process."""

    def open(self, opener: Callable[[], DiffusionPipeline], threads: float) -> None:
        torch.set_num_threads(max(1, int(threads)))
        self._worker = Worker(opener())

    def draw(self, task: Task, path: Floats | None) -> Outcome:
        return self._worker(task, path)


def _resources() -> dict[str, float]:
    """What the cluster has in all, by name."""
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]


def _connect(address: str | None) -> None:
    _check_address(address)
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        settings["include_dashboard"] = False
    try:
        ray.init(address=address or "local", **settings)
    except (ConnectionError, ValueError) as error:
        raise ExecutionError(f"no Ray cluster at {address!r}: {one_line(error)}") from error


def _check_address(address: str | None) -> None:
    """Raises unless something listens there; Ray itself tries for minutes."""
    host, _, port = (address or "").rpartition("/")[2].rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ExecutionError(f"no Ray cluster at {address!r}: {one_line(error)}") from error
