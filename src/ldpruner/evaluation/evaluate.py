"""Cost and quality of a pruned pipeline, side by side with its original."""

import logging
from collections.abc import Collection, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from pydantic import Field

from ldpruner.errors import EvaluationError
from ldpruner.evaluation.features import (
    Clip,
    Extractor,
    Features,
    Lpips,
    LpipsNetwork,
    find_clip,
    find_dino,
    find_extractor,
    find_lpips,
)
from ldpruner.evaluation.measures import (
    COSTS,
    METRICS,
    MIN_SAMPLES,
    Measure,
    category_measures,
    cost_measures,
    sample_measures,
    set_measures,
)
from ldpruner.evaluation.media import Folder, find_media
from ldpruner.evaluation.metrics import CONFIDENCE, RESAMPLES
from ldpruner.evaluation.observer import DECODED_BATCH_SIZE, Observer, observe, observe_files
from ldpruner.evaluation.scorers import Score, find_scorers
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.sampling import BATCH_SIZE, largest_batch
from ldpruner.profiling.benchmark import Comparison, compare
from ldpruner.progress import Progress, unreported
from ldpruner.values import Value, check_choice, check_count

PACKAGES = ("ld-pruner", "torch", "diffusers", "transformers", "torchmetrics", "numpy", "scipy")

logger = logging.getLogger(__name__)


class Evaluation(Value):
    """All measures, and how they were made: probe, seeds, counts, networks, data, device, versions.

    Attributes:
        metrics: of all samples.
        by_category: scores and paired distances of the samples of each category of prompts; empty without categories.
        protocol: all that is needed to measure the same again.
    """

    metrics: tuple[Measure, ...]
    by_category: dict[str, tuple[Measure, ...]] = Field(default_factory=dict)
    protocol: dict[str, Any]

    def __getitem__(self, metric: str) -> Measure:
        """The measure of this name; KeyError if it was not measured."""
        return {measure.metric: measure for measure in self.metrics}[metric]

    @property
    def worse(self) -> tuple[str, ...]:
        """The quality metrics by which the pruned pipeline is worse than its original, beyond the noise floor."""
        return tuple(measure.metric for measure in self.metrics if measure.within_noise_floor is False)


def evaluate(  # noqa: PLR0913  (each is a choice of its own)
    pruned: DiffusionPipeline,
    reference: DiffusionPipeline,
    probe: Probe | None = None,
    *,
    data: Path | str | None = None,
    features: Features = "latents",
    clip: str | None = None,
    dino: str | None = None,
    lpips: LpipsNetwork | None = None,
    scorers: Sequence[Score | str] = (),
    metrics: Collection[str] = METRICS,
    component: str | None = None,
    batch_size: int | None = None,
    steps: int | None = None,
    progress: Progress = unreported,
) -> Evaluation:
    """Measures cost and quality of a pruned pipeline and its original.

    This takes 3 * samples * steps denoiser calls on one sample each: the pruned pipeline samples once, the original
    with the same seeds and with others. Timing and a check that samples can be batched take a few more. Nothing is
    decoded unless features, scorers or metrics need it.

    Args:
        pruned: the pruned pipeline.
        reference: the original.
        probe: samples, steps and prompts. The seeds are the next two after the probe's, which scoring did not see.
        data: a folder of pictures or sounds to compare samples with, in features other than the latents. None compares
            them with the original's samples of other seeds.
        features: `latents`, `inception`, the folder or Hub id of a transformers network, or an `Extractor`.
        clip: the folder or Hub id of a CLIP model, for CMMD and for how well pictures match their prompts.
        dino: the folder or Hub id of a DINO network, for the distance to the original's sample.
        lpips: the network of the LPIPS distance to the original's sample: `alex`, `vgg` or `squeeze`.
        scorers: functions of your own, or their names as `module:function` (see `Scorer`).
        metrics: which to measure; those that do not apply are left out.
        component: which network was pruned, in pipelines with more than one denoiser.
        batch_size: samples at once; None means 16, or 8 if they are decoded.
        steps: of the pruned pipeline; None means those of the probe.
        progress: wraps the batches of samples and the rounds of timings.

    Raises:
        DataError: there is no data, or a file is broken.
        EvaluationError: features, scorers or settings do not fit the pipeline.
        NonFiniteLatents: one of the pipelines samples latents that are not finite.
    """
    probe, own = (probe or Probe()).completed(reference), find_scorers(scorers)
    _check(reference, probe, data, features, metrics, has_scorers=bool(own))
    if batch_size is not None:
        check_count("batch_size", batch_size, EvaluationError)
    folder = find_media(data) if data is not None else None
    chosen = frozenset(_measurable(metrics))
    extractor = find_extractor(features, reference.device)
    observer = Observer(extractor, chosen, *_networks(chosen, clip, dino, lpips, reference.device), own)
    seeds = [probe.replace(seed=probe.seed + shift) for shift in (1, 2)]
    size = batch_size or (DECODED_BATCH_SIZE if observer.decodes else BATCH_SIZE)
    size = largest_batch(reference, seeds[0], size)
    ours = seeds[0].replace(steps=steps) if steps is not None else seeds[0]
    pipelines = ((reference, seeds[0]), (reference, seeds[1]), (pruned, ours))
    runs, example = observe(pipelines, observer, size, progress)
    real = observe_files(folder, example, observer) if folder else runs[1]
    pair, own_steps = {"original": reference, "pruned": pruned}, {"pruned": ours.steps}
    options: dict[str, Any] = {"component": component, "steps": own_steps, "progress": progress}
    comparison = compare(pair, probe, **options) if set(COSTS) & chosen else None
    measures = [
        *(cost_measures(comparison) if comparison is not None else ()),
        *set_measures(runs, real, chosen, extractor),
        *sample_measures(runs, chosen, own),
    ]
    if metrics is not METRICS and (missing := chosen - {measure.metric for measure in measures}):
        logger.warning("these do not apply to %s: %s", type(reference).__name__, ", ".join(sorted(missing)))
    order = (*METRICS, *(scorer.name for scorer in own))
    categories = [name for index in range(probe.samples) if (name := probe.category(index)) is not None]
    networks = {"features": extractor.name, "clip": clip, "dino": dino, "lpips": lpips}
    settings = {
        **networks,
        "scorers": [scorer.name for scorer in own],
        "batch_size": size,
        "steps": ours.steps,
        "decoded": observer.decodes,
    }
    return Evaluation(
        metrics=tuple(sorted(measures, key=lambda measure: order.index(measure.metric))),
        by_category=category_measures(runs, categories, chosen, own),
        protocol=settings | _protocol(reference, seeds, folder, len(real["features"]), comparison),
    )


def _networks(
    metrics: frozenset[str], clip: str | None, dino: str | None, lpips: LpipsNetwork | None, device: torch.device
) -> tuple[Clip | None, Extractor | None, Lpips | None]:
    """Opens the networks that some metric needs."""
    return (
        find_clip(clip, device) if clip is not None and metrics & {"clip_score", "cmmd"} else None,
        find_dino(dino, device) if dino is not None and "dino_distance" in metrics else None,
        find_lpips(lpips, device) if lpips is not None and "lpips" in metrics else None,
    )


def _measurable(metrics: Collection[str]) -> Collection[str]:
    """The metrics, without SSIM if its package is missing and it was not asked for by name."""
    if metrics is not METRICS or find_spec("torchmetrics") is not None:
        return metrics
    logger.info('no SSIM, which needs torchmetrics: pip install "ld-pruner[evaluation]"')
    return tuple(name for name in METRICS if name != "ssim")


def _check(
    reference: DiffusionPipeline,
    probe: Probe,
    data: Path | str | None,
    features: Features,
    metrics: Collection[str],
    *,
    has_scorers: bool,
) -> None:
    """Raises EvaluationError for settings that do not fit, before anything is sampled."""
    if isinstance(metrics, str) or not (metrics or has_scorers):
        raise EvaluationError(f"metrics={metrics!r}: give a list of them; accepted: {', '.join(METRICS)}")
    probe.check(reference)
    for name in metrics:
        check_choice("metric", name, METRICS, EvaluationError)
    if probe.samples < MIN_SAMPLES:
        raise EvaluationError(f"{probe.samples} samples are too few to compare; give the probe at least {MIN_SAMPLES}")
    if data is not None and features == "latents":
        raise EvaluationError(
            f"files such as those of {str(data)!r} have no latents; choose features: inception, a folder or a Hub id"
        )
    prompts = probe.prompts if isinstance(probe.prompts, Sequence) else ()
    if probe.categories is not None and probe.samples < len(prompts):
        text = "%d samples take the first %d of %d prompts, and leave out categories of the others"
        logger.warning(text, probe.samples, probe.samples, len(prompts))


def _protocol(
    reference: DiffusionPipeline,
    seeds: Sequence[Probe],
    folder: Folder | None,
    real_samples: int,
    comparison: Comparison | None,
) -> dict[str, Any]:
    """What else is needed to measure the same numbers again."""
    return {
        "probe": seeds[0].model_dump(mode="json"),
        "seeds": {"samples": seeds[0].seed, "noise_floor": seeds[1].seed},
        "samples": seeds[0].samples,
        "reference": {
            "samples": real_samples,
            "folder": str(folder.path) if folder else None,
            "digest": folder.digest if folder else None,
        },
        "latency": comparison
        and {"rounds": comparison.rounds, "samples": 1, "interval": "10 % to 90 % of the rounds"},
        "bootstrap": {
            "resamples": RESAMPLES,
            "confidence": CONFIDENCE,
            "seed": 0,
            "interval": "percentiles, corrected for bias; the reference is not resampled, except for recall",
        },
        "pipeline": type(reference).__name__,
        "device": str(reference.device),
        "precision": str(reference.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in PACKAGES if name != "torchmetrics" or find_spec(name)},
    }
