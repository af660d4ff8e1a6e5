"""Records calls of a denoiser that differ in batch and size: what differs shall be free in the exported network."""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from ldpruner.pipelines.call_values import as_json
from ldpruner.pipelines.denoiser import copied, find_denoiser
from ldpruner.pipelines.flat_calls import FlatCall, is_number
from ldpruner.pipelines.patches import patched
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import StopPipeline, accepted_arguments, run_pipeline

STEP_CALLS = 4  # from which numbers are known that change from step to step: guidance may call twice in a step
LARGE = 128  # pixels; other sizes are smaller than such ones, and larger than less


@dataclass(frozen=True)
class Variant:
    """A way to export a denoiser.

    Attributes:
        call: the recorded call that is exported.
        free: for each tensor the dimensions that may have any size.
        others: calls that the exported network must compute too.
        samples: how many samples the call is for.
        freedom: what is free, in words.
    """

    call: FlatCall
    free: dict[str, set[int]]
    others: tuple[FlatCall, ...]
    samples: int
    freedom: str


@dataclass(frozen=True)
class RecordedCalls:
    """Calls of a denoiser with the same arguments, and tensors of several sizes.

    Attributes:
        component, network: the denoiser.
        single, pair, triple: of as many samples; None where the pipeline takes no such batch.
        resized: of a pair of other height or width.
        numbers: paths of plain numbers that change from step to step.
    """

    component: str
    network: nn.Module
    single: FlatCall
    pair: FlatCall | None
    triple: FlatCall | None
    resized: tuple[FlatCall, ...]
    numbers: tuple[str, ...]

    def variants(self) -> Iterator[Variant]:
        """Ways to export the denoiser, the freest first."""
        if self.pair is not None:
            batches = tuple(call for call in (self.single, self.triple) if call is not None)
            if self.resized:
                yield self._variant(self.pair, (*batches, *self.resized), 2, "batch and size")
            yield self._variant(self.pair, batches, 2, "batch")
        yield self._variant(self.single, (), 1, "none")

    def _variant(self, call: FlatCall, others: tuple[FlatCall, ...], samples: int, freedom: str) -> Variant:
        free = {
            path: {
                place
                for other in others
                for place, size in enumerate(other.tensors(self.numbers)[path].shape)
                if size != tensor.shape[place]
            }
            for path, tensor in call.tensors(self.numbers).items()
        }
        return Variant(call, free, others, samples, freedom)


def record_calls(pipeline: DiffusionPipeline, component: str | None, probe: Probe) -> RecordedCalls:
    """Records calls of a pipeline's denoiser, with several batches and sizes if the pipeline takes these.

    Raises:
        DenoiserNotFound, ProbeError: the pipeline cannot be run with the probe.
    """
    denoiser = find_denoiser(pipeline, component, probe.arguments(pipeline, [0]))
    recorder = _Recorder(pipeline, denoiser.module)
    steps = recorder.calls(probe, [0], STEP_CALLS)
    single = steps[0] if steps else FlatCall.of(denoiser.module.forward, denoiser.arguments, denoiser.options)
    numbers = tuple(path for path in single.leaves if _changes(path, steps))
    pair, triple = (recorder.alike(single, numbers, probe, list(range(samples))) for samples in (2, 3))
    resized: list[FlatCall] = []
    if pair is not None and recorder.size is not None:
        for size in _other_sizes(*recorder.size):
            call = recorder.alike(single, numbers, probe.replace(call={**probe.call, **size}), [0, 1])
            resized += [call] if call is not None else []
    return RecordedCalls(denoiser.component, denoiser.module, single, pair, triple, tuple(resized), numbers)


def _changes(path: str, calls: Sequence[FlatCall]) -> bool:
    values = [call.leaves.get(path) for call in calls]
    return all(map(is_number, values)) and len(set(values)) > 1


def _other_sizes(height: int, width: int) -> Iterable[dict[str, int]]:
    """The size with another height, and with another width."""
    resized = [size // 2 if size >= LARGE else size * 2 for size in (height, width)]
    return {"height": resized[0], "width": width}, {"height": height, "width": resized[1]}


class _Recorder:
    """Runs a pipeline and records calls of one of its networks."""

    def __init__(self, pipeline: DiffusionPipeline, network: nn.Module) -> None:
        self.pipeline, self.network = pipeline, network
        self.size: tuple[int, int] | None = None  # in pixels, of the last run

    def calls(self, probe: Probe, samples: Sequence[int], count: int) -> list[FlatCall]:
        """The first calls of a run; none if the pipeline does not take these samples."""
        calls: list[FlatCall] = []

        def record(module: nn.Module, args: Any, kwargs: Any) -> None:
            calls.append(FlatCall.of(module.forward, *copied((args, kwargs))))
            if len(calls) == count:
                raise StopPipeline

        handle = self.network.register_forward_pre_hook(record, with_kwargs=True, prepend=True)
        try:
            self._run(probe, samples)
        except Exception:  # noqa: BLE001  (a pipeline fails in its own way; one sample of the usual size worked)
            return []
        finally:
            handle.remove()
        return calls

    def alike(self, call: FlatCall, numbers: Sequence[str], probe: Probe, samples: Sequence[int]) -> FlatCall | None:
        """The first call of a run, if it differs from another one in the sizes of its tensors only."""
        calls = self.calls(probe, samples, 1)
        if not calls or calls[0].leaves.keys() != call.leaves.keys():
            return None
        own, tensors = calls[0].tensors(numbers), call.tensors(numbers)
        if any(path not in own or own[path].ndim != tensor.ndim for path, tensor in tensors.items()):
            return None
        constants = call.leaves.keys() - tensors.keys()
        is_same = all(as_json(calls[0].leaves[path]) == as_json(call.leaves[path]) for path in constants)
        return calls[0] if is_same else None

    def _run(self, probe: Probe, samples: Sequence[int]) -> None:
        arguments = probe.arguments(self.pipeline, samples)
        prepare = getattr(self.pipeline, "prepare_latents", None)
        if prepare is None or len(accepted_arguments(self.pipeline, {"height": 0, "width": 0})) < 2:
            run_pipeline(self.pipeline, arguments)
            return
        signature = inspect.signature(prepare)

        def watched(*args: Any, **kwargs: Any) -> Any:
            values = signature.bind(*args, **kwargs).arguments
            if isinstance(values.get("height"), int) and isinstance(values.get("width"), int):
                self.size = values["height"], values["width"]
            return prepare(*args, **kwargs)

        with patched(self.pipeline, prepare_latents=watched):
            run_pipeline(self.pipeline, arguments)
