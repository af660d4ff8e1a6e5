"""Measures what sampling costs (parameters, MACs, latency, memory), and each module's share of the latency."""

import contextlib
import functools
import itertools
import statistics
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ldpruner.operators.discovery import denoiser_macs
from ldpruner.pipelines.denoiser import Denoiser
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pipelines.offload import module_device
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import networks
from ldpruner.pipelines.sampling import sample_latents
from ldpruner.values import Value

Clock: TypeAlias = Callable[[], float]

REPEATS = 7  # timings, of which the median is kept
THREAD_REPEATS = 3  # pairs of calls that tell whether several threads are faster than one


class Costs(Value):
    """What sampling the latents of one sample costs. Decoding is left out: pruning does not change it.

    Attributes:
        parameters: weights of the denoiser.
        macs: multiply-accumulates of one denoiser call on one sample, attention products included.
        latency_ms: time from the pipeline's arguments to the final latents.
        denoiser_ms: the part of it that is spent in the denoiser.
        memory: bytes at the peak, weights of all components included.
    """

    parameters: int
    macs: int
    latency_ms: float
    denoiser_ms: float
    memory: int


def measure_costs(pipeline: DiffusionPipeline, denoiser: Denoiser, probe: Probe) -> Costs:
    """Measures what sampling the first sample of a probe costs."""
    sample = functools.partial(sample_latents, pipeline, probe, [0])
    total, share = measure_latency(sample, denoiser.module)
    return Costs(
        parameters=count_parameters(denoiser.module),
        macs=denoiser_macs(denoiser),
        latency_ms=total,
        denoiser_ms=total * share,
        memory=peak_memory(pipeline, sample),
    )


def measure_latency(run: Callable[[], Any], denoiser: nn.Module, repeats: int = REPEATS) -> tuple[float, float]:
    """Median time of some runs in ms, after one that does not count, and the share of it spent in the denoiser."""
    totals, shares = [], []
    for repeat in range(repeats + 1):
        with _timed_calls({"": denoiser}, module_device(denoiser)) as spans:
            total = elapsed_ms(run, module_device(denoiser))
        if repeat:
            totals.append(total)
            shares.append(sum(itertools.starmap(_ms_between, spans[""])) / total)
    return statistics.median(totals), statistics.median(shares)


def module_shares(denoiser: Denoiser, repeats: int = REPEATS) -> dict[str, float]:
    """For every submodule, the share of a denoiser call's time that is spent in it.

    One depth of nesting is timed at a time, so that no module's time contains the timing of its own submodules. Then
    the shares are normalised: without it, noise would make the parts of a block save more than the block.
    """
    by_depth: dict[int, dict[str, nn.Module]] = defaultdict(dict)
    for name, module in denoiser.module.named_modules():
        if name:
            by_depth[name.count(".")][name] = module
    shares: dict[str, float] = {}
    denoiser()
    with _effective_threads(denoiser):
        for modules in by_depth.values():
            shares |= _shares_at_depth(denoiser, modules, repeats)
    return normalize_shares(shares)


@contextlib.contextmanager
def _effective_threads(denoiser: Denoiser) -> Iterator[None]:
    """Uses one CPU thread where several make a call no faster, because other processes keep them waiting.

    A thread's wait says nothing about the module, and many short modules wait longer than a long one.
    """
    device, threads = module_device(denoiser.module), torch.get_num_threads()
    times: dict[int, list[float]] = defaultdict(list)
    try:
        for count in (threads, 1) * THREAD_REPEATS if device.type == "cpu" and threads > 1 else ():
            torch.set_num_threads(count)
            times[count].append(elapsed_ms(denoiser, device))
        if times and statistics.median(times[threads]) < statistics.median(times[1]):
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(threads)


def normalize_shares(shares: Mapping[str, float]) -> dict[str, float]:
    """Scales shares by module name, so that those inside a module add up to no more than its own; at the top, to 1."""
    inside: dict[str, list[str]] = defaultdict(list)
    for name in shares:
        inside[_enclosing(name, shares)].append(name)
    normalized = {"": 1.0, **shares}
    for outer in sorted(inside):  # outer modules first
        total = sum(normalized[name] for name in inside[outer])
        if total > normalized[outer]:
            normalized.update({name: normalized[name] * normalized[outer] / total for name in inside[outer]})
    return {name: normalized[name] for name in shares}


def _enclosing(name: str, shares: Mapping[str, float]) -> str:
    """The innermost module around one that has a share; a list of modules has none."""
    outer = name.rpartition(".")[0]
    return outer if not outer or outer in shares else _enclosing(outer, shares)


def _shares_at_depth(denoiser: Denoiser, modules: dict[str, nn.Module], repeats: int) -> dict[str, float]:
    # On the CPU, time that other processes take is not counted: it would hit single modules.
    device = module_device(denoiser.module)
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    shares: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        with _timed_calls(modules, device, clock) as spans:
            total = elapsed_ms(denoiser, device, clock)
        for name, calls in spans.items():
            shares[name].append(sum(itertools.starmap(_ms_between, calls)) / total)
    return {name: statistics.median(values) for name, values in shares.items()}


def elapsed_ms(function: Callable[[], Any], device: torch.device, clock: Clock = time.perf_counter) -> float:
    """How long a call takes in ms, including all its work on the device."""
    start = _moment(device, clock)
    function()
    return _ms_between(start, _moment(device, clock))


def _moment(device: torch.device, clock: Clock) -> Any:
    """The time on the CPU; on CUDA an event, which does not wait for the device and so slows nothing around it."""
    if device.type != "cuda":
        return clock()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _ms_between(start: Any, stop: Any) -> float:
    """The time between two moments of a device in ms."""
    if isinstance(start, float):
        return float(stop - start) * 1e3
    stop.synchronize()
    return float(start.elapsed_time(stop))


@contextlib.contextmanager
def _timed_calls(
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
    on_cuda = [weight.nbytes for weight in weights.values() if weight.is_cuda]
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()  # includes other pipelines' weights
        run()
        return sum(on_cuda) + torch.cuda.max_memory_allocated() - before
    counter = _StorageCounter()
    with counter:
        run()
    return sum(weight.nbytes for weight in weights.values()) + counter.peak


class _StorageCounter(TorchDispatchMode):
    """Counts the bytes of the storages that were made while it is active and are not yet freed."""

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
