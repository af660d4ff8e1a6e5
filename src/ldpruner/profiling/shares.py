"""Each module's share of a denoiser call's latency, and the share that several removals save together."""

import contextlib
import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from ldpruner.operators.discovery import Removal
from ldpruner.operators.patching import modified
from ldpruner.pipelines.denoiser import Denoiser
from ldpruner.pipelines.offload import module_device
from ldpruner.profiling.costs import REPEATS, Clock, elapsed_ms, ms_between, timed_calls

PAIRS = 5  # timings of the whole and the modified denoiser
THREAD_REPEATS = 3  # pairs of calls that tell whether several threads are faster than one


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
    """Shares of calls that are timed in turn without hooks: hooks on many modules slow a call by a fifth."""
    device, clock = _device_and_clock(denoiser)
    totals: list[float] = []
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        totals.append(elapsed_ms(denoiser, device, clock))
        with timed_calls(modules, device, clock) as spans:
            denoiser()
        for name, calls in spans.items():
            times[name].append(sum(itertools.starmap(ms_between, calls)))
    total = statistics.median(totals)
    return {name: statistics.median(values) / total for name, values in times.items()}


def saved_share(denoiser: Denoiser, removals: Sequence[Removal], repeats: int = PAIRS) -> float:
    """The share of a denoiser call's time that some removals save together: the median over pairs timed in turn.

    It differs from the sum of the shares of what is removed: code around the modules goes too, and less memory makes
    the rest faster.
    """
    device, clock = _device_and_clock(denoiser)
    ratios = []
    with _effective_threads(denoiser):
        for _ in range(repeats):
            whole = _second_call(denoiser, device, clock)
            with modified(denoiser.module, removals):
                ratios.append(_second_call(denoiser, device, clock) / whole)
    return 1 - statistics.median(ratios)


def _second_call(denoiser: Denoiser, device: torch.device, clock: Clock) -> float:
    """The time of a call in ms, after one that fills the caches."""
    denoiser()
    return elapsed_ms(denoiser, device, clock)


def _device_and_clock(denoiser: Denoiser) -> tuple[torch.device, Clock]:
    """On the CPU, time that other processes take is not counted: it would hit single modules."""
    device = module_device(denoiser.module)
    return device, time.thread_time if device.type == "cpu" else time.perf_counter
