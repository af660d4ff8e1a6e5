"""Measures what a call of a pipeline costs: parameters, MACs, latency, memory."""

import contextlib
import functools
import itertools
import logging
import statistics
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ldpruner.errors import PipelineFailed
from ldpruner.operators.discovery import denoiser_macs
from ldpruner.pipelines.denoiser import Denoiser
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pipelines.offload import module_device
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import networks
from ldpruner.pipelines.sampling import run_probe, sample_latents
from ldpruner.profiling.machine import Machine, machine_of
from ldpruner.values import Value

Clock: TypeAlias = Callable[[], float]

logger = logging.getLogger(__name__)

REPEATS = 7  # timings, of which the median is kept


class Costs(Value):
    """What one call of a pipeline on one sample costs, decoding included.

    Attributes:
        parameters: weights of the denoiser.
        macs: multiply-accumulates of one denoiser call on one sample, attention products included.
        latency_ms: time of the whole call.
        denoiser_ms: the part of it that is spent in the denoiser.
        memory: bytes at the peak, weights of all components included.
        machine: where the times were measured; None for times that were made up.
    """

    parameters: int
    macs: int
    latency_ms: float
    denoiser_ms: float
    memory: int
    machine: Machine | None = None


def measure_costs(pipeline: DiffusionPipeline, denoiser: Denoiser, probe: Probe) -> Costs:
    """Measures what a call of a pipeline on the first sample of a probe costs; without decoding, if that fails."""
    call: Callable[[], Any] = functools.partial(run_probe, pipeline, probe, [0])
    try:
        total, share = measure_latency(call, denoiser.module)
    except PipelineFailed as error:
        logger.info("%s; timing its latents only", error)
        call = functools.partial(sample_latents, pipeline, probe, [0])
        total, share = measure_latency(call, denoiser.module)
    return Costs(
        parameters=count_parameters(denoiser.module),
        macs=denoiser_macs(denoiser),
        latency_ms=total,
        denoiser_ms=total * share,
        memory=peak_memory(pipeline, call),
        machine=machine_of(denoiser.module),
    )


def measure_latency(run: Callable[[], Any], denoiser: nn.Module, repeats: int = REPEATS) -> tuple[float, float]:
    """Median time of some runs in ms, after one that does not count, and the share of it spent in the denoiser."""
    totals, shares = [], []
    for repeat in range(repeats + 1):
        with timed_calls({"": denoiser}, module_device(denoiser)) as spans:
            total = elapsed_ms(run, module_device(denoiser))
        if repeat:
            totals.append(total)
            shares.append(sum(itertools.starmap(ms_between, spans[""])) / total)
    return statistics.median(totals), statistics.median(shares)


def elapsed_ms(function: Callable[[], Any], device: torch.device, clock: Clock = time.perf_counter) -> float:
    """How long a call takes in ms, including all its work on the device."""
    start = _moment(device, clock)
    function()
    return ms_between(start, _moment(device, clock))


def _moment(device: torch.device, clock: Clock) -> Any:
    """The time once a device has done its work; on CUDA an event, which waits for nothing and so slows nothing."""
    if device.type == "cuda":
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return clock()


def ms_between(start: Any, stop: Any) -> float:
    """The time between two moments of a device in ms."""
    if isinstance(start, float):
        return float(stop - start) * 1e3
    stop.synchronize()
    return float(start.elapsed_time(stop))


@contextlib.contextmanager
def timed_calls(
    modules: dict[str, nn.Module], device: torch.device, clock: Clock = time.perf_counter
) -> Iterator[dict[str, list[tuple[Any, Any]]]]:
    """Times every call of some modules of a network on `device`: for each module the moments of its calls."""
    spans: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
    started: list[Any] = []
    with contextlib.ExitStack() as stack:
        for name, module in modules.items():
            own_device = module_device(module, device)

            def enter(*_: Any, own_device: torch.device = own_device) -> None:
                started.append(_moment(own_device, clock))

            def leave(*_: Any, name: str = name, own_device: torch.device = own_device) -> None:
                spans[name].append((started.pop(), _moment(own_device, clock)))

            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        yield spans


def peak_memory(pipeline: DiffusionPipeline, run: Callable[[], Any]) -> int:
    """Bytes at the peak of a run: the weights of all components, and the tensors that are alive at once.

    On CUDA the allocator reports them, less what it held before. Elsewhere tensor storages are counted, with the same
    result in every run.
    """
    components = networks(pipeline).values()
    weights = {id(weight): weight for part in components for weight in (*part.parameters(), *part.buffers())}
    on_cuda = [weight for weight in weights.values() if weight.is_cuda]
    if on_cuda:
        device = on_cuda[0].device
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)  # includes other pipelines' weights
        run()
        return sum(weight.nbytes for weight in on_cuda) + torch.cuda.max_memory_allocated(device) - before
    counter = _StorageCounter()
    with counter:
        run()
    return sum(weight.nbytes for weight in weights.values()) + counter.peak


class _StorageCounter(TorchDispatchMode):
    """Counts the bytes of the storages that were made while it is active and are not yet freed."""

    supports_higher_order_operators = True  # such as FlexAttention

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive, self.peak = 0, 0
        self._storages: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {_storage(leaf) for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)}
        output = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor) and _storage(leaf) not in inputs | self._storages:
                self._add(leaf.untyped_storage())
        return output

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._storages.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.alive -= size


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
