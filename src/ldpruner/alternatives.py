"""What else makes the original of a run as fast: fewer steps, a cache, int8 weights."""

import logging
import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, FirstBlockCacheConfig

from ldpruner.errors import LdPrunerError
from ldpruner.evaluation.evaluate import evaluate
from ldpruner.evaluation.settings import EVALUATED_SAMPLES
from ldpruner.files import locked
from ldpruner.knapsack import TOLERANCE
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import networks
from ldpruner.progress import Progress, unreported
from ldpruner.pruning.surgery import prune
from ldpruner.run_folder import Alternative, RunFolder
from ldpruner.selection.plan import Plan

CACHE_THRESHOLD = 0.1  # of FirstBlockCache: a step is skipped if the first block's output moves by less

logger = logging.getLogger(__name__)


def evaluate_alternatives(
    run: Path | str,
    *,
    probe: Probe | None = None,
    original: DiffusionPipeline | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: Progress = unreported,
    **options: Any,
) -> tuple[Alternative, ...]:
    """Evaluates what else makes the original of a run folder faster, and keeps it there as `alternatives.json`.

    The alternatives are the original with fewer steps, as many as fit into the measured latency of the run's pipeline;
    diffusers' FirstBlockCache where the denoiser has it; and int8 weights where torchao is installed.

    Args:
        probe: how samples are made; None is the probe of the scores, with 64 samples.
        original: of the run folder; None opens it with `device` and `dtype` (see `open_pipeline`).
        options: of `evaluate`, such as `features`.

    Raises:
        RunStoreError: the run's pipeline was not evaluated, so that its latency is not known.
    """
    folder = RunFolder(run)
    with locked(run):
        ratio, scores = folder.latency_ratio(), folder.scores()
        reference = folder.open_original(original, device, dtype, progress)
        probe = (probe or scores.probe.replace(samples=EVALUATED_SAMPLES)).completed(reference)
        options |= {"component": scores.component, "progress": progress}
        measured = []
        for name, pipeline, steps in _alternatives(reference, scores.component, probe.steps, ratio):
            logger.info("evaluating %s", name)
            try:
                evaluation = evaluate(pipeline, reference, probe, steps=steps, **options)
            except LdPrunerError as error:
                logger.warning("%s is left out: %s", name, error)
                continue
            measured.append(Alternative(name=name, evaluation=evaluation))
        folder.write_alternatives(measured)
    return tuple(measured)


def steps_within(steps: int, ratio: float) -> int:
    """How many denoising steps fit into a share of the time of `steps`; at least one."""
    return max(1, math.floor(ratio * steps + TOLERANCE))


def _alternatives(
    original: DiffusionPipeline, component: str, steps: int, ratio: float
) -> Iterator[tuple[str, DiffusionPipeline, int | None]]:
    """The name, the pipeline, and its steps where they are not the probe's."""
    whole = Plan(component=component, removed=())  # pruning by it makes a copy
    fewer = steps_within(steps, ratio)
    if fewer < steps:
        yield f"{fewer} of {steps} steps", original, fewer
    if hasattr(networks(original)[component], "enable_cache"):
        cached = prune(original, whole)
        caching: Any = networks(cached)[component]
        caching.enable_cache(FirstBlockCacheConfig(threshold=CACHE_THRESHOLD))
        yield f"FirstBlockCache, threshold {CACHE_THRESHOLD:g}", cached, None
    if find_spec("torchao") is not None:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantized = prune(original, whole)
        quantize_(networks(quantized)[component], Int8WeightOnlyConfig())
        yield "int8 weights", quantized, None
