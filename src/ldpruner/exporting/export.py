"""Exports the denoiser of a pipeline, and proves it on a whole denoising run."""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, DiffusionPipeline
from torch.utils._pytree import tree_leaves

from ldpruner.errors import ExportError, one_line
from ldpruner.exporting.formats import PACKAGES, FlatNetwork, as_used, capture, failure, output_layout, write_program
from ldpruner.exporting.recording import RecordedCalls, Variant, record_calls
from ldpruner.pipelines.call_values import as_json
from ldpruner.pipelines.denoiser import copied
from ldpruner.pipelines.exported import (
    DESCRIPTION,
    ExportDescription,
    ExportedNetwork,
    Parity,
    check_not_exported,
    open_exported,
)
from ldpruner.pipelines.fingerprints import module_dtype
from ldpruner.pipelines.flat_calls import CallLayout, FlatCall, TensorInput, input_names
from ldpruner.pipelines.offload import module_device, without_offload
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.sampling import sample_latents
from ldpruner.pipelines.sessions import FILES, import_package
from ldpruner.pipelines.state import all_parts
from ldpruner.progress import Progress, reported, unreported
from ldpruner.pruning.saving import check_replaceable, save
from ldpruner.values import check_choice

TOLERANCE = 1e-3  # relative difference of latents in float32
HALF_TOLERANCE = 5e-2  # in float16 and bfloat16
HALVES = (torch.float16, torch.bfloat16)

logger = logging.getLogger(__name__)


def export(
    pipeline: DiffusionPipeline,
    folder: Path | str,
    file_format: str,
    *,
    probe: Probe | None = None,
    component: str | None = None,
    progress: Progress = unreported,
) -> ExportDescription:
    """Exports the denoiser of a pipeline, original or pruned, and saves the pipeline with it; `load` opens the folder.

    The denoiser takes nearly all of the time: text encoders and autoencoders stay in torch. Batch and size are free
    where the network allows it. The exported network takes the place of the torch one in a whole denoising run with
    the same seeds. If the latents differ, nothing is saved.

    Args:
        pipeline: it does not change.
        folder: where to save. An earlier save is replaced; a folder with anything else is refused.
        file_format: onnx, openvino or torch-export.
        probe: of the run that is compared, on two of its samples.
        component: which network, for pipelines with more than one denoiser.

    Raises:
        ExportError: the network cannot be written in the format, or its latents differ.
        StorageError: the folder cannot be written, or holds something else.
    """
    check_choice("format", file_format, FILES, ExportError)
    for package in PACKAGES[file_format]:
        import_package(package, file_format)
    target = check_replaceable(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    probe = (probe or Probe(samples=2)).completed(pipeline)
    with (
        without_offload(pipeline),
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as place,
    ):
        recorded = reported(progress, "recording calls", lambda: record_calls(pipeline, component, probe))
        exporter = _Exporter(pipeline, recorded, file_format, Path(place))
        network, variant = reported(progress, f"exporting to {file_format}", exporter.freest)
        samples = range(min(variant.samples, probe.samples))
        parity = reported(progress, "comparing a denoising run", lambda: exporter.parity(network, probe, samples))
        description = exporter.describe(network.description.replace(parity=parity))
        with exporter.in_place(network):
            save(pipeline, target)
    return description


class _Exporter:
    """Writes a denoiser into a folder, and compares it.

    Raises:
        ExportError: the denoiser cannot be exported.
    """

    def __init__(self, pipeline: DiffusionPipeline, recorded: RecordedCalls, file_format: str, folder: Path) -> None:
        self.pipeline, self.recorded, self.file_format, self.folder = pipeline, recorded, file_format, folder
        self.name = recorded.component
        self.network: Any = recorded.network
        self.dtype = module_dtype(self.network)
        self.tolerance = HALF_TOLERANCE if self.dtype in HALVES else TOLERANCE
        check_not_exported(self.network)
        if not isinstance(self.network, ConfigMixin) or self.name not in pipeline.components:
            raise ExportError(f"{self.name} is no component of diffusers; export only what its pipeline saves")
        if self.dtype is torch.bfloat16 and file_format != "torch-export":
            raise ExportError(f"{file_format} does not compute in bfloat16; export the pipeline in float32")

    def freest(self) -> tuple[ExportedNetwork, Variant]:
        """The exported network with as many free dimensions as it allows, checked on calls of other sizes."""
        problem: Exception | None = None
        for variant in self.recorded.variants():
            if problem is not None:
                logger.info("%s; now with free dimensions: %s", one_line(problem), variant.freedom)
            try:
                return self._written(variant), variant
            except Exception as error:  # noqa: BLE001  (exporters raise errors of every type)
                problem = error
        assert problem is not None
        raise failure(problem, self.file_format, self.network) from problem

    def _written(self, variant: Variant) -> ExportedNetwork:
        tensors = variant.call.tensors(self.recorded.numbers)
        flat = FlatNetwork(self.network, variant.call, list(tensors))
        names = input_names(list(tensors))
        program = capture(flat, variant, tensors)
        write_program(program, self.file_format, self.folder, names)
        inputs = [
            TensorInput(
                name=name,
                path=path,
                dtype=str(tensor.dtype).removeprefix("torch."),
                shape=tuple(None if place in variant.free[path] else size for place, size in enumerate(tensor.shape)),
            )
            for name, (path, tensor) in zip(names, tensors.items(), strict=True)
        ]
        constants = {path: as_json(leaf) for path, leaf in variant.call.leaves.items() if path not in tensors}
        description = ExportDescription(
            format=self.file_format,
            dtype=str(self.dtype).removeprefix("torch."),
            layout=CallLayout(inputs=tuple(inputs), constants=constants),
            output=output_layout(flat, list(tensors.values())),
            free=variant.freedom,
            versions={name: version(name) for name in ("torch", "diffusers", *PACKAGES[self.file_format])},
        )
        self.describe(description)
        network = self._opened()
        for call in (variant.call, *variant.others):
            self._check_call(network, call)
        return network

    def describe(self, description: ExportDescription) -> ExportDescription:
        """Writes the description, and the configuration of the network."""
        self.network.save_config(self.folder)
        (self.folder / DESCRIPTION).write_text(description.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return description

    def _opened(self) -> ExportedNetwork:
        library, class_name = self.pipeline.config[self.name]
        network = open_exported(self.folder, library, class_name, trusted=True)
        return network.to(module_device(self.network))

    def _check_call(self, network: ExportedNetwork, call: FlatCall) -> None:
        """Raises ExportError if one call of the exported network differs."""
        args, kwargs = call.arguments(call.leaves)
        with as_used(self.network):
            expected, actual = (tree_leaves(part(*copied(args), **copied(kwargs))) for part in (self.network, network))
        difference = max(map(_relative_difference, expected, actual))
        if not difference <= self.tolerance:
            raise ExportError(f"one call differs by {difference:.1e}, more than {self.tolerance:g}")

    def parity(self, network: ExportedNetwork, probe: Probe, samples: Sequence[int]) -> Parity:
        """The difference of a whole denoising run.

        Raises:
            ExportError: it is too large.
        """
        expected = sample_latents(self.pipeline, probe, samples)
        with self.in_place(network):
            actual = sample_latents(self.pipeline, probe, samples)
        difference = _relative_difference(expected, actual)
        if not difference <= self.tolerance:
            raise ExportError(
                f"the latents of {type(self.network).__name__} differ by {difference:.1e} once it is exported to "
                f"{self.file_format}, more than {self.tolerance:g}; nothing was saved, try another format"
            )
        return Parity(difference=difference, tolerance=self.tolerance, samples=len(samples), steps=probe.steps)

    @contextlib.contextmanager
    def in_place(self, network: ExportedNetwork) -> Iterator[None]:
        """Puts the exported network into the pipeline, and into those that it holds, inside `with`."""
        inner = [part for part in all_parts(self.pipeline).values() if isinstance(part, DiffusionPipeline)]
        owners = [owner for owner in (self.pipeline, *inner) if self.name in owner.components]
        originals = [owner.components[self.name] for owner in owners]
        try:
            for owner in owners:
                owner.register_modules(**{self.name: network})
            yield
        finally:
            for owner, original in zip(owners, originals, strict=True):
                owner.register_modules(**{self.name: original})


def _relative_difference(expected: torch.Tensor, actual: torch.Tensor) -> float:
    if expected.shape != actual.shape:
        return float("inf")
    first, second = expected.double(), actual.double()
    return float((first - second).norm() / first.norm().clamp(min=1e-12))
