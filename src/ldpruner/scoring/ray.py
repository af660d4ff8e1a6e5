"""Sampling for scores on a Ray cluster, or with several workers on this machine. Nothing else imports ray."""

import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
import ray.exceptions
import ray.util
import torch
from diffusers import DiffusionPipeline

from ldpruner.errors import ExecutionError, one_line
from ldpruner.scoring.worker import Outcome, Task, Worker

RETRIES = 3  # of a task whose worker dies; workers themselves are always restarted
PATIENCE = 60.0  # seconds for a node to appear that has room for a worker


class RayExecutor:
    """Does tasks on Ray actors, each of which opens the pipeline once. Ray restarts those that die.

    Args:
        opener: opens the pipeline in a worker, on the worker's own device.
        address: of a Ray cluster; None starts workers on this machine.
        cpus: that a worker needs, and computes with.
        gpus: that a worker needs; None is one where the cluster has any.
        patience: seconds to wait for a node that has room for a worker, as a cluster that grows needs some.

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
        gpus = float(_resources().get("GPU", 0) > 0) if gpus is None else gpus
        self._needs, self._patience = {"CPU": float(cpus), "GPU": gpus}, patience
        options = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=RETRIES)
        self._actor: Any = options(_Actor)
        self._arguments, self._actors = (ray.put(opener), cpus), list[Any]()

    def __enter__(self) -> "RayExecutor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all workers."""
        for actor in self._actors:
            ray.kill(actor)
        if self._started:
            ray.shutdown()

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Outcome]]:
        """Each task with its outcome, in the order in which they come.

        Raises:
            ExecutionError: workers died again and again over a task, or no node has room for one.
            Exception: the pipeline's own, where the original fails; the outcomes of other workers come before it.
        """
        self._hire()
        pool, queue, asked = ray.util.ActorPool(self._actors), iter(tasks), list[Task]()
        failure: Exception | None = None
        while True:
            while failure is None and pool.has_free() and (task := next(queue, None)) is not None:  # type: ignore[no-untyped-call]
                pool.submit(lambda actor, numbered: actor.sample.remote(*numbered), (len(asked), task))
                asked.append(task)
            if not pool.has_next():  # type: ignore[no-untyped-call]
                break
            try:
                number, outcome = pool.get_next_unordered()
            except ray.exceptions.RayTaskError as error:
                failure = error.as_instanceof_cause()  # type: ignore[no-untyped-call]
            except ray.exceptions.RayError as error:
                failure = ExecutionError(f"workers died {RETRIES + 1} times over a task: {one_line(error)}")
            else:
                yield asked[number], outcome
        if failure is not None:
            raise failure

    def _hire(self) -> None:
        """As many workers as the cluster has room for in all; one at least, for which a cluster may have to grow."""
        room = min(int(_resources().get(name, 0) // need) for name, need in self._needs.items() if need)
        self._actors += [self._actor.remote(*self._arguments) for _ in range(max(1, room) - len(self._actors))]
        deadline = time.monotonic() + self._patience
        while not any(_holds(node["Resources"], self._needs) for node in ray.nodes() if node["Alive"]):  # type: ignore[no-untyped-call]
            if time.monotonic() > deadline:
                needed, there = (_listed(resources, self._needs) for resources in (self._needs, _resources()))
                raise ExecutionError(
                    f"a worker needs {needed} on one node, the whole cluster has {there}; ask for less"
                )
            time.sleep(min(1.0, self._patience))


class _Actor:
    """A worker's process. It opens the pipeline with the first task, so that its errors are that task's."""

    def __init__(self, opener: Callable[[], DiffusionPipeline], threads: int) -> None:
        torch.set_num_threads(threads)
        self._opener = opener
        self._worker: Worker | None = None

    def sample(self, number: int, task: Task) -> tuple[int, Outcome]:
        self._worker = self._worker or Worker(self._opener())
        return number, self._worker(task)


def _holds(resources: dict[str, float], needs: dict[str, float]) -> bool:
    return all(resources.get(name, 0.0) >= need for name, need in needs.items())


def _listed(resources: dict[str, float], needs: dict[str, float]) -> str:
    return " and ".join(f"{resources.get(name, 0):g} {name}" for name in needs)


def _resources() -> dict[str, float]:
    """What the cluster has in all."""
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
