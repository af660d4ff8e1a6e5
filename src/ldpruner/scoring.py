"""Scoring operators: every modification on every sample of the probe, as in the paper."""

import contextlib
import functools
import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from ldpruner.blocks import FEWEST, grouped, samples_of
from ldpruner.costs import Costs, latency, module_shares, peak_memory
from ldpruner.errors import NonFiniteLatents, OperatorNotFound, one_line
from ldpruner.estimates import Change, Curve, interval, relative_error, to_many, usual_spread
from ldpruner.fingerprints import architecture, count_parameters, weights_digest
from ldpruner.importance import Floats, Metric, Moments, importance, merged, moments
from ldpruner.latents import draw_latents, largest_batch
from ldpruner.modifications import modified
from ldpruner.operators import Candidate, Operator, denoiser_macs, operators_of
from ldpruner.pipelines import Denoiser, find_denoiser, networks, schedulers
from ldpruner.probe import Probe
from ldpruner.runs import UNTOUCHED, Key, Ledger
from ldpruner.scores import Forecast, Savings, Score, Scores

logger = logging.getLogger(__name__)

BATCH = 16  # samples drawn at once
# What a denoiser raises when a stand-in does not fit. Running out of memory says nothing about the operator.
MISFITS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError)


class Scoring:
    """A scoring run: an iterable with a length that draws everything, as in the paper, then `scores()`.

    The arguments are those of `score_operators`, which draws what matters only.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        operators: Sequence[Operator] | None = None,
        probe: Probe | None = None,
        *,
        component: str | None = None,
        run: Path | str | None = None,
        metric: Metric = "mean_std",
        batch_size: int = BATCH,
    ) -> None:
        self.pipeline, self.metric = pipeline, metric
        self.probe = self._completed(probe or Probe())
        component = operators[0].component if operators else component
        self.denoiser = find_denoiser(pipeline, component, self.probe.arguments(pipeline, [0]))
        self.operators = operators_of(self.denoiser) if operators is None else tuple(operators)
        self._check_operators()
        self._curves: dict[tuple[Key, Metric], Curve] = {}
        self.ledger = Ledger(run, self._identity())
        try:
            self.batch_size = batch_size if self._batches_are_safe() else 1
            self.untouched, self.failures = self.ledger.untouched(), self.ledger.failures()
        except BaseException:
            self.ledger.close()
            raise

    def _completed(self, probe: Probe) -> Probe:
        completed = probe.completed(self.pipeline)
        if completed is not probe:
            logger.info("no prompts given: drawing from general ones; some of your own would fit your use better")
        return completed

    def _batches_are_safe(self) -> bool:
        """Whether samples may be drawn together; found out once, and kept in the ledger."""
        known = self.ledger.fact("batches_are_safe")
        if known is None:
            known = largest_batch(self.pipeline, self.probe, BATCH) > 1
            self.ledger.set_fact("batches_are_safe", known)
            if not known and self.probe.samples > 1:
                logger.info("%s is drawn one sample at a time: in a batch, one changes another", self._name)
        return bool(known)

    @property
    def _name(self) -> str:
        return type(self.pipeline).__name__

    def __enter__(self) -> "Scoring":
        return self

    def __exit__(self, *_: object) -> None:
        self.ledger.close()

    def __len__(self) -> int:
        """How many draws the whole run takes, finished ones included."""
        return len(self._groups()) * (1 + len(self.candidates))

    def __iter__(self) -> Iterator[str]:
        """Draws what is not finished yet; yields the operator's name after each draw."""
        for group in self._groups():
            self._draw_untouched(group)
            yield "untouched"
        for candidate in self.candidates:
            for group in self._groups():
                self._draw_modified(candidate, group)
                yield candidate.operator

    def extend(self, candidate: Candidate | None, samples: int) -> None:
        """Draws what is missing of a modification's first samples, or of the untouched pipeline's (None)."""
        for group in self._groups(samples):
            if candidate is None:
                self._draw_untouched(group)
            else:
                self._draw_modified(candidate, group)

    def scores(self, metric: Metric | None = None, first: Mapping[Candidate, int] | None = None) -> Scores:
        """The scores of what has been drawn; any metric can be read off the same latents.

        Args:
            metric: which score; that of the run if None.
            first: of each modification how many samples count, where more may have been drawn.
        """
        metric = metric or self.metric
        costs, shares = self._costs()
        curves = {one: curve for one in self.candidates if (curve := self._curve(_key(one), metric))}
        if first is not None:
            curves = {one: curve.first(first[one]) for one, curve in curves.items()}
        finite = [one for one in curves.values() if math.isfinite(one.score)]
        estimate = functools.partial(_estimate, to_many(finite, self.probe.samples), usual_spread(finite), metric)
        return Scores(
            component=self.denoiser.component,
            architecture=architecture(self.denoiser.module),
            probe=self.probe,
            metric=metric,
            costs=costs,
            denoiser_calls=self.ledger.denoiser_calls(),
            scores=tuple(
                Score(
                    operator=candidate.operator,
                    kind=operator.kind,
                    modification=candidate.modification,
                    **estimate(curves.get(candidate)),
                    saves=self._savings(candidate, costs, shares),
                    candidate=candidate,
                    failure=self.failures.get(_key(candidate)),
                )
                for operator in self.operators
                for candidate in operator.candidates
            ),
        )

    def forecast(self) -> Forecast:
        """What the run will take, from one draw and the costs."""
        _, calls = self._draw_samples([0])
        costs, _ = self._costs()
        probed, modifications = self.probe.samples, len(self.candidates)
        samples = [min(FEWEST, probed) * (1 + modifications), probed * (1 + modifications)]
        return Forecast(
            operators=len(self.operators),
            modifications=modifications,
            denoiser_calls=(samples[0] * calls, samples[1] * calls),
            seconds=(samples[0] * costs.latency_ms / 1000, samples[1] * costs.latency_ms / 1000),
        )

    def _curve(self, key: Key, metric: Metric) -> Curve | None:
        """The scores of a modification by the number of samples; None if nothing was drawn, or in vain."""
        if key in self.failures:
            return None
        if (key, metric) not in self._curves:
            blocks, base = self._finished(key), self._finished(UNTOUCHED)
            if not blocks:
                return None
            ends = list(itertools.accumulate(one.count for one in blocks.values()))
            scores = {}
            for place, end in enumerate(ends):
                if end.bit_count() == 1 or end == ends[-1]:
                    first = list(blocks)[: place + 1]
                    drawn = merged([blocks[block] for block in first])
                    scores[end] = importance(merged([base[block] for block in first]), drawn, metric)
            distances = np.concatenate([one.squared_errors for one in blocks.values()])
            self._curves[key, metric] = Curve(scores, distances)
        return self._curves[key, metric]

    @property
    def candidates(self) -> list[Candidate]:
        return [candidate for operator in self.operators for candidate in operator.candidates]

    def _groups(self, samples: int | None = None) -> list[list[int]]:
        """The blocks that are drawn together, of the first samples or of all."""
        return grouped(self.probe.samples if samples is None else samples, self.batch_size)

    def _samples(self, block: int) -> range:
        return samples_of(block, self.probe.samples)

    def _draw_untouched(self, group: Sequence[int]) -> None:
        missing = self._missing(UNTOUCHED, group)
        if not missing:
            return
        blocks, calls = self._draw(missing)
        for block, latents in blocks.items():
            if not np.isfinite(latents).all():
                raise NonFiniteLatents(
                    f"the untouched pipeline's latents are not finite (samples {list(self._samples(block))}); "
                    "try another precision"
                )
        self.ledger.record(UNTOUCHED, {block: moments(one, one) for block, one in blocks.items()}, calls, blocks)
        self.untouched |= blocks

    def _draw_modified(self, candidate: Candidate, group: Sequence[int]) -> None:
        key = _key(candidate)
        missing = self._missing(key, group)
        if not missing or key in self.failures or any(not one.is_finite for one in self._finished(key).values()):
            return
        try:
            with modified(self.denoiser.module, [candidate.removal]):
                blocks, calls = self._draw(missing)
        except MISFITS as error:
            if is_out_of_memory(error):
                raise
            draw_latents(self.pipeline, self.probe, [0])  # raises if it is not the modification's fault
            self.failures[key] = one_line(error)
            self.ledger.record_failure(key, self.failures[key])
            return
        self.ledger.record(key, {block: moments(one, self.untouched[block]) for block, one in blocks.items()}, calls)
        self._curves = {known: curve for known, curve in self._curves.items() if known[0] != key}

    def _finished(self, key: Key) -> dict[int, Moments]:
        """The blocks of this probe that are done; the last one of a smaller probe held fewer samples."""
        known = self.ledger.finished(key)
        blocks = [block for group in self._groups() for block in group]
        return {block: known[block] for block in blocks if block in known and self._is_whole(block, known[block])}

    def _is_whole(self, block: int, found: Moments) -> bool:
        return found.count == len(self._samples(block))

    def _missing(self, key: Key, group: Sequence[int]) -> list[int]:
        finished = self._finished(key)
        return [block for block in group if block not in finished]

    def _draw(self, blocks: Sequence[int]) -> tuple[dict[int, Floats], int]:
        """The latents of some blocks, and how many denoiser calls each sample took."""
        samples = [index for block in blocks for index in self._samples(block)]
        latents, calls = self._draw_samples(samples)
        parts = latents.double().split([len(self._samples(block)) for block in blocks])
        return {block: part.numpy() for block, part in zip(blocks, parts, strict=True)}, calls

    def _draw_samples(self, samples: Sequence[int]) -> tuple[torch.Tensor, int]:
        """Latents, in batches that fit into memory, and how many denoiser calls each sample took."""
        batches = [samples[first : first + self.batch_size] for first in range(0, len(samples), self.batch_size)]
        try:
            with self._counted_calls() as calls:
                drawn = [draw_latents(self.pipeline, self.probe, batch).cpu() for batch in batches]
                return torch.cat(drawn), next(calls) // len(batches)
        except RuntimeError as error:
            if not is_out_of_memory(error) or len(batches[0]) == 1:
                raise
        self.batch_size = -(-len(batches[0]) // 2)
        logger.info("out of memory: going on with %d samples at once", self.batch_size)
        return self._draw_samples(samples)

    @contextlib.contextmanager
    def _counted_calls(self) -> Iterator[Iterator[int]]:
        """A counter that stands at the number of denoiser calls so far."""
        calls = itertools.count()

        def count(*_: object) -> None:
            next(calls)

        handle = self.denoiser.module.register_forward_pre_hook(count)
        try:
            yield calls
        finally:
            handle.remove()

    def _costs(self) -> tuple[Costs, dict[str, float]]:
        """Measured once, and kept in the ledger."""
        known = self.ledger.fact("costs")
        if known is None:
            costs = measure_costs(self.pipeline, self.denoiser, self.probe)
            known = {"costs": costs.model_dump(), "shares": module_shares(self.denoiser)}
            self.ledger.set_fact("costs", known)
        return Costs(**known["costs"]), known["shares"]

    def _savings(self, candidate: Candidate, costs: Costs, shares: dict[str, float]) -> Savings:
        share = sum(shares.get(name, 0.0) for name in (candidate.operator, *candidate.also))
        if candidate.modification == "shortcut":
            share -= shares.get(f"{candidate.operator}.{candidate.through}", 0.0)
        weight_bytes = next(self.denoiser.module.parameters()).element_size()
        return Savings(
            parameters=candidate.parameters,
            macs=candidate.macs,
            latency_ms=share * costs.denoiser_ms,
            memory=candidate.parameters * weight_bytes,
        )

    def _identity(self) -> dict[str, object]:
        """What the results depend on. The number of samples is not part of it: a run can be extended."""
        steppers = schedulers(self.pipeline)
        return {
            "pipeline": self._name,
            "component": self.denoiser.component,
            "architecture": architecture(self.denoiser.module).model_dump(),
            "weights": {name: weights_digest(part) for name, part in networks(self.pipeline).items()},
            "scheduler": [repr((type(one).__name__, sorted(one.config.items()))) for one in steppers],
            "probe": self.probe.model_dump(mode="json", exclude={"samples"}),
        }

    def _check_operators(self) -> None:
        known = {name for name, _ in self.denoiser.module.named_modules()}
        for operator in self.operators:
            if operator.name not in known:
                raise OperatorNotFound(operator.name, known)


def _key(candidate: Candidate) -> Key:
    return candidate.operator, candidate.modification


def _estimate(changes: Mapping[int, Change], usual: float, metric: Metric, curve: Curve | None) -> dict[str, Any]:
    """A score as of the whole probe, its interval, and the samples that it was read off."""
    if curve is None or not math.isfinite(curve.score):
        return {"score": math.inf, "interval": None, "samples": 0 if curve is None else curve.samples}
    change = changes[curve.samples]
    score, error = curve.score * change.factor, max(relative_error(curve, usual, metric), change.scatter)
    return {"score": score, "interval": interval(score, error), "samples": curve.samples}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; on the CPU torch has no type for it."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


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
