"""Scoring operators: every modification on every sample of the probe, as in the paper."""

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline

from ldpruner.costs import Costs, latency, module_shares, peak_memory
from ldpruner.errors import NonFiniteLatents, OperatorNotFound, one_line
from ldpruner.fingerprints import architecture, count_parameters, weights_digest
from ldpruner.importance import Floats, Metric, Moments, importance, merged, moments
from ldpruner.latents import draw_latents, largest_batch
from ldpruner.modifications import modified
from ldpruner.operators import Candidate, Operator, denoiser_macs, operators_of
from ldpruner.pipelines import Denoiser, find_denoiser, networks, schedulers
from ldpruner.probe import Probe
from ldpruner.runs import UNTOUCHED, Key, Ledger
from ldpruner.scores import Savings, Score, Scores

logger = logging.getLogger(__name__)

BLOCK = 8  # samples whose moments are kept together, whatever the batch
FIRST = (2, 2, 4)  # the first blocks are smaller: few samples tell most operators apart
BATCH = 16  # samples drawn at once
# What a denoiser raises when a stand-in does not fit. Running out of memory says nothing about the operator.
MISFITS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError)


def score_operators(
    pipeline: DiffusionPipeline,
    operators: Sequence[Operator] | None = None,
    probe: Probe | None = None,
    *,
    component: str | None = None,
    run: Path | str | None = None,
    metric: Metric = "mean_std",
    batch_size: int = BATCH,
) -> Scores:
    """Scores the operators of a pipeline's denoiser by modifying each of them in turn.

    The denoiser is afterwards as it was before, to the bit, also after an error or Ctrl-C.

    Args:
        pipeline: the untouched pipeline.
        operators: which; all of `find_operators` if None.
        probe: which latents to compare.
        component: which network, for pipelines with more than one denoiser.
        run: the run folder; what it already holds is not computed again.
        metric: the score (see `importance`).
        batch_size: how many samples to draw at once; changes no score beyond rounding.

    Raises:
        NonFiniteLatents: the untouched pipeline's own latents are not finite.
        LedgerError: the run folder is another model's or probe's.
    """
    with Scoring(
        pipeline, operators, probe, component=component, run=run, metric=metric, batch_size=batch_size
    ) as scoring:
        for _ in scoring:
            pass
        return scoring.scores()


class Scoring:
    """A scoring run: an iterable with a length that does the work, then `scores()`.

    The arguments are those of `score_operators`.
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
        self._calls = 0
        self.ledger = Ledger(run, self._identity())
        try:
            self.batch_size = batch_size if self._batches_are_safe() else 1
            self.untouched = self.ledger.untouched()
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
        return len(self._groups()) * (1 + len(self._candidates()))

    def __iter__(self) -> Iterator[str]:
        """Draws what is not finished yet; yields the operator's name after each draw."""
        with self._counted_calls():
            for group in self._groups():
                self._draw_untouched(group)
                yield "untouched"
            failures = self.ledger.failures()
            for _, candidate in self._candidates():
                for group in self._groups():
                    if (candidate.operator, candidate.modification) not in failures:
                        self._draw_modified(candidate, group)
                    yield candidate.operator

    def scores(self, metric: Metric | None = None) -> Scores:
        """The scores of what has been drawn; any metric can be read off the same latents."""
        metric = metric or self.metric
        costs, shares = self._costs()
        base = merged(list(self._finished(UNTOUCHED).values()))
        failures = self.ledger.failures()

        def moved(drawn: Moments) -> float:
            return importance(base, drawn, metric)

        return Scores(
            component=self.denoiser.component,
            architecture=architecture(self.denoiser.module),
            probe=self.probe,
            metric=metric,
            costs=costs,
            denoiser_calls=self.ledger.denoiser_calls(),
            scores=tuple(
                self._score(operator, candidate, moved, failures, self._savings(candidate, costs, shares))
                for operator, candidate in self._candidates()
            ),
        )

    def _score(
        self,
        operator: Operator,
        candidate: Candidate,
        moved: Callable[[Moments], float],
        failures: dict[tuple[str, str], str],
        saves: Savings,
    ) -> Score:
        key = (candidate.operator, candidate.modification)
        blocks = list(self._finished(key).values())
        failure = failures.get(key)
        value = moved(merged(blocks)) if blocks and failure is None else float("inf")
        return Score(
            operator=candidate.operator,
            kind=operator.kind,
            modification=candidate.modification,
            score=value,
            samples=sum(block.count for block in blocks),
            saves=saves,
            candidate=candidate,
            failure=failure,
        )

    def _candidates(self) -> list[tuple[Operator, Candidate]]:
        return [(operator, candidate) for operator in self.operators for candidate in operator.candidates]

    def _groups(self) -> list[list[int]]:
        """The blocks that are drawn together."""
        groups: list[list[int]] = []
        for block in itertools.takewhile(self._samples, itertools.count()):
            end = self._samples(block).stop
            if groups and end - self._samples(groups[-1][0]).start <= self.batch_size:
                groups[-1].append(block)
            else:
                groups.append([block])
        return groups

    def _samples(self, block: int) -> range:
        small, large = FIRST[: block + 1], max(0, block + 1 - len(FIRST))
        end = sum(small) + large * BLOCK
        size = BLOCK if large else small[-1]
        return range(end - size, min(end, self.probe.samples))

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
        key = (candidate.operator, candidate.modification)
        missing = self._missing(key, group)
        if not missing or any(not one.is_finite for one in self._finished(key).values()):
            return
        try:
            with modified(self.denoiser.module, [candidate.removal]):
                blocks, calls = self._draw(missing)
        except MISFITS as error:
            if is_out_of_memory(error):
                raise
            draw_latents(self.pipeline, self.probe, [0])  # raises if it is not the modification's fault
            self.ledger.record_failure(key, one_line(error))
            return
        self.ledger.record(key, {block: moments(one, self.untouched[block]) for block, one in blocks.items()}, calls)

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
        batches = [samples[first : first + self.batch_size] for first in range(0, len(samples), self.batch_size)]
        before = self._calls
        latents = torch.cat([draw_latents(self.pipeline, self.probe, batch).cpu() for batch in batches])
        parts = latents.double().split([len(self._samples(block)) for block in blocks])
        drawn = {block: part.numpy() for block, part in zip(blocks, parts, strict=True)}
        return drawn, (self._calls - before) // len(batches)

    @contextlib.contextmanager
    def _counted_calls(self) -> Iterator[None]:
        def count(*_: object) -> None:
            self._calls += 1

        handle = self.denoiser.module.register_forward_pre_hook(count)
        try:
            yield
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
