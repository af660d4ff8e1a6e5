"""What a pipeline costs, and which part of it each module is: parameters, MACs, latency, memory."""

import contextlib
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
from ldpruner.pipelines.offload import execution_device
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import networks
from ldpruner.pipelines.sampling import draw_latents
from ldpruner.values import Value

Clock: TypeAlias = Callable[[], float]

REPEATS = 7  # of each timing; the median is kept
PAIRS = 3  # of calls that tell whether several threads are faster than one


class Costs(Value):
    """What drawing one sample's latents costs. Decoding is not part of it: pruning does not change it.

    Attributes:
        parameters: weights of the denoiser.
        macs: multiply-accumulates of one denoiser call on one sample, attention products counted.
        latency_ms: time from the pipeline's arguments to the final latents.
        denoiser_ms: the part of it that is spent in the denoiser.
        memory: bytes at the peak, weights of all components included.
    """

    parameters: int
    macs: int
    latency_ms: float
    denoiser_ms: float
    memory: int


def latency(run: Callable[[], Any], denoiser: nn.Module, repeats: int = REPEATS) -> tuple[float, float]:
    """Median time of a run, in ms, and the share of it that is spent in the denoiser.

    Args:
        run: what is timed, `repeats` times after one that does not count.
        denoiser: the network whose calls are timed inside it.
        repeats: how many runs count.
    """
    totals, shares = [], []
    for repeat in range(repeats + 1):
        with _timed({"": denoiser}, device_of(denoiser)) as inside:
            total = timed_ms(run, device_of(denoiser))
        if repeat:
            totals.append(total)
            shares.append(sum(span() for span in inside[""]) / total)
    return statistics.median(totals), statistics.median(shares)


def module_shares(denoiser: Denoiser, repeats: int = REPEATS) -> dict[str, float]:
    """For every submodule, the share of a denoiser call's time that is spent in it.

    One depth of nesting is timed at a time, so that no module's time contains the timing of its own submodules. What
    noise adds to these beyond their module's own share is taken off again: else a plan removes them all in its stead.
    """
    by_depth: dict[int, dict[str, nn.Module]] = defaultdict(dict)
    for name, module in denoiser.module.named_modules():
        if name:
            by_depth[name.count(".")][name] = module
    shares: dict[str, float] = {}
    denoiser()
    with _threads_that_pay(denoiser):
        for modules in by_depth.values():
            shares |= _shares_at_once(denoiser, modules, repeats)
    return nested(shares)


@contextlib.contextmanager
def _threads_that_pay(denoiser: Denoiser) -> Iterator[None]:
    """One thread in place of several, where these make a call no faster: others on the machine keep them waiting.

    How long is no matter of the module, and many short modules wait longer than a long one.
    """
    device, known = device_of(denoiser.module), torch.get_num_threads()
    if device.type != "cpu" or known == 1:
        yield
        return
    try:
        pairs = [[_timed_with(threads, denoiser, device) for threads in (known, 1)] for _ in range(PAIRS)]
        several, one = map(statistics.median, zip(*pairs, strict=True))
        torch.set_num_threads(known if several < one else 1)
        yield
    finally:
        torch.set_num_threads(known)


def _timed_with(threads: int, denoiser: Denoiser, device: torch.device) -> float:
    torch.set_num_threads(threads)
    return timed_ms(denoiser, device)


def nested(shares: Mapping[str, float]) -> dict[str, float]:
    """Shares of modules, by name, where those within another add up to no more than its own; at the top, to 1."""
    within: dict[str, list[str]] = defaultdict(list)
    for name in shares:
        within[_around(name, shares)].append(name)
    found = {"": 1.0, **shares}
    for outer in sorted(within):  # outer ones first
        total = sum(found[name] for name in within[outer])
        if total > found[outer]:
            found.update({name: found[name] * found[outer] / total for name in within[outer]})
    return {name: found[name] for name in shares}


def _around(name: str, shares: Mapping[str, float]) -> str:
    """The innermost module around one that has a share; a list of modules has none."""
    outer = name.rpartition(".")[0]
    return outer if not outer or outer in shares else _around(outer, shares)


def _shares_at_once(denoiser: Denoiser, modules: dict[str, nn.Module], repeats: int) -> dict[str, float]:
    # Others on a machine slow single modules: a processor's own work is what its thread was given.
    device = device_of(denoiser.module)
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    observed: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        with _timed(modules, device, clock) as inside:
            total = timed_ms(denoiser, device, clock)
        for name, spans in inside.items():
            observed[name].append(sum(span() for span in spans) / total)
    return {name: statistics.median(values) for name, values in observed.items()}


def timed_ms(function: Callable[[], Any], device: torch.device, clock: Clock = time.perf_counter) -> float:
    """How long a call takes, in ms, all its work on the device included."""
    end = _span(device, clock)
    function()
    return end()()


def _span(device: torch.device, clock: Clock) -> Callable[[], Callable[[], float]]:
    """Starts a span; calling the result ends it, and gives a function that returns its length in ms."""
    if device.type == "cuda":
        return _cuda_span()
    start = clock()

    def end() -> Callable[[], float]:
        length = (clock() - start) * 1e3
        return lambda: length

    return end


def _cuda_span() -> Callable[[], Callable[[], float]]:
    # Events do not wait for the device, so timing a module does not slow the call that it is part of.
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()

    def length() -> float:
        stop.synchronize()
        return float(start.elapsed_time(stop))

    def end() -> Callable[[], float]:
        stop.record()
        return length

    return end


@contextlib.contextmanager
def _timed(
    modules: dict[str, nn.Module], device: torch.device, clock: Clock = time.perf_counter
) -> Iterator[dict[str, list[Callable[[], float]]]]:
    """Times every call of some modules; those without weights run on the device of the network that they are of."""
    spans: dict[str, list[Callable[[], float]]] = defaultdict(list)
    open_spans: list[Callable[[], Callable[[], float]]] = []
    handles = []
    for name, module in modules.items():
        place = device_of(module, device)

        def enter(*_: Any, place: torch.device = place) -> None:
            open_spans.append(_span(place, clock))

        def leave(*_: Any, name: str = name) -> None:
            spans[name].append(open_spans.pop()())

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield spans
    finally:
        for handle in handles:
            handle.remove()


def device_of(module: nn.Module, otherwise: torch.device | None = None) -> torch.device:
    """Where a network computes; `otherwise`, or the CPU, for what has no weights."""
    offloaded = execution_device(module)
    return offloaded or next((weight.device for weight in module.parameters()), otherwise or torch.device("cpu"))


def peak_memory(pipeline: DiffusionPipeline, run: Callable[[], Any]) -> int:
    """Bytes at the peak of a run: every component's weights, and the tensors alive at once.

    On CUDA, the tensors are what its allocator reports, less what it held before; elsewhere, a count of tensor
    storages, the same in every run.
    """
    parts = networks(pipeline).values()
    weights = {id(weight): weight for part in parts for weight in (*part.parameters(), *part.buffers())}
    on_cuda = [weight.nbytes for weight in weights.values() if weight.is_cuda]
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()  # other pipelines' weights, too
        run()
        return sum(on_cuda) + torch.cuda.max_memory_allocated() - before
    counter = _StorageCounter()
    with counter:
        run()
    return sum(weight.nbytes for weight in weights.values()) + counter.peak


class _StorageCounter(TorchDispatchMode):
    """Counts the bytes of all storages that are made while it is active and not yet freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive, self.peak = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_key(leaf) for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and _key(leaf) not in given | self._known:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def measure_costs(pipeline: DiffusionPipeline, denoiser: Denoiser, probe: Probe) -> Costs:
    """What drawing the latents of one sample of a probe costs."""

    def draw() -> None:
        draw_latents(pipeline, probe, [0])

    total, share = latency(draw, denoiser.module)
    return Costs(
        parameters=count_parameters(denoiser.module),
        macs=denoiser_macs(denoiser),
        latency_ms=total,
        denoiser_ms=total * share,
        memory=peak_memory(pipeline, draw),
    )
