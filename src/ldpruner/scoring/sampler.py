"""Sampling modifications and the baseline, and keeping what is finished: nothing is sampled twice."""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from ldpruner.errors import NonFiniteLatents
from ldpruner.operators.discovery import Candidate
from ldpruner.pipelines.probe import Probe
from ldpruner.scoring.estimates import CURVES, Curve, comparable_scores
from ldpruner.scoring.importance import Floats, Metric, Moments, importance, merged, moments
from ldpruner.scoring.store import Key, RunStore
from ldpruner.scoring.worker import Executor, Outcome, Task


class Batch(NamedTuple):
    """Samples of one batch: of a modification, or of the baseline."""

    candidate: Candidate | None
    samples: range

    @property
    def name(self) -> str:
        return self.candidate.operator if self.candidate is not None else "baseline"


class Sampler:
    """Samples modifications and the baseline, and keeps what is finished in the store.

    The samples of a modification are added in their order: its running moment has the same bits whoever computed them.

    Args:
        component: the denoiser's name in the pipeline.
        probe: what samples there are.
        store: where finished samples are kept.
        executor: who samples.
        batch_size: how many samples at once.

    Attributes:
        curves: the finished samples of each modification.
        failures: why modifications cannot be removed.
    """

    def __init__(self, component: str, probe: Probe, store: RunStore, executor: Executor, batch_size: int) -> None:
        self.component, self.probe, self.batch_size = component, probe, batch_size
        self.store, self.executor = store, executor
        self.curves, self.failures = store.curves(), store.failures()
        self._baseline, self._baseline_moments = store.baseline(), dict[int, Moments]()

    def missing(self, wanted: Mapping[Candidate, int]) -> list[Batch]:
        """The batches that are missing until modifications have some of the probe's first samples.

        The baseline, which they are compared with, comes first; then the first batch of each, the second, and so on.
        """
        most = min(max(wanted.values(), default=0), self.probe.samples)
        baseline = self._batches(None, len(self._baseline), most)
        counts = {candidate: self.count(candidate) for candidate in wanted if self._is_sound(key_of(candidate))}
        others = [
            batch
            for candidate, count in counts.items()
            for batch in self._batches(candidate, count, wanted[candidate])
        ]
        return [*baseline, *sorted(others, key=lambda batch: batch.samples.start)]

    def count(self, candidate: Candidate) -> int:
        """How many samples of a modification are finished."""
        curve = self.curves.get(key_of(candidate))
        return curve.samples if curve else 0

    def scores(self, counts: Mapping[Candidate, int], metric: Metric) -> Floats:
        """[modifications] the scores of the first samples; infinity of what cannot be removed, or was not sampled.

        Args:
            counts: for each modification how many samples count; more may be finished.
            metric: which score.
        """
        sampled = [
            candidate for candidate in counts if key_of(candidate) in self.curves and self._is_sound(key_of(candidate))
        ]
        curves = [self.curves[key_of(candidate)] for candidate in sampled]
        scores = comparable_scores(curves, [counts[candidate] for candidate in sampled], self.probe.samples, metric)
        values = dict(zip(sampled, scores.tolist(), strict=True))
        return np.array([values.get(candidate, math.inf) for candidate in counts])

    def sample(self, wanted: Mapping[Candidate, int]) -> Iterator[str]:
        """Samples what is `missing`; yields the operator's name after each batch.

        Raises:
            NonFiniteLatents: the original's own latents are not finite.
        """
        batches = self.missing(wanted)
        asked: dict[Task, Batch] = {}

        def tasks() -> Iterator[Task]:
            for batch in batches:
                if batch.candidate is None or self._is_sound(key_of(batch.candidate)):
                    task = self._task(batch)
                    asked[task] = batch
                    yield task

        finished, waiting = 0, list[tuple[Batch, Outcome]]()  # for the baseline or for earlier samples
        for task, outcome in self.executor.run(tasks()):
            waiting.append((asked.pop(task), outcome))
            while ready := next((pair for pair in waiting if self._can_be_recorded(pair[0])), None):
                waiting.remove(ready)
                self._record(*ready)
                finished += 1
                yield ready[0].name
        yield from (batch.name for batch in batches[finished:])  # more samples of modifications that fail

    def _batches(self, candidate: Candidate | None, first: int, wanted: int) -> Iterator[Batch]:
        last = min(wanted, self.probe.samples)
        for start in range(first, last, self.batch_size):
            yield Batch(candidate, range(start, min(start + self.batch_size, last)))

    def _task(self, batch: Batch) -> Task:
        removal = batch.candidate.removal if batch.candidate is not None else None
        return Task(self.component, self.probe, removal, tuple(batch.samples), self.batch_size)

    def _is_sound(self, key: Key) -> bool:
        """Whether a modification can be sampled, as far as is known."""
        curve = self.curves.get(key)
        return key not in self.failures and (curve is None or bool(np.isfinite(curve.squared_errors).all()))

    def _can_be_recorded(self, batch: Batch) -> bool:
        if batch.candidate is None or not self._is_sound(key_of(batch.candidate)):
            return True
        return batch.samples.start == self.count(batch.candidate) and all(s in self._baseline for s in batch.samples)

    def _record(self, batch: Batch, outcome: Outcome) -> None:
        if batch.candidate is None:
            self._record_baseline(batch, outcome)
            return
        key = key_of(batch.candidate)
        if not self._is_sound(key):
            return
        if outcome.failure is not None:
            self.failures[key] = outcome.failure
            self.store.record_failure(key, outcome.failure)
            return
        assert outcome.latents is not None
        curve, stop = self.curves.get(key, Curve.empty()), batch.samples.stop
        running = moments(outcome.latents, self._reference(batch.samples))
        if curve.samples:
            running = merged(self.store.moments(key), running)
        baseline = self._first_moments(stop)
        scores = {name: {**curve.scores[name], stop: importance(baseline, running, name)} for name in CURVES}
        calls = curve.denoiser_calls + outcome.calls * len(batch.samples)
        self.curves[key] = Curve(running.squared_errors, scores, calls)
        self.store.record(key, self.curves[key], running)

    def _record_baseline(self, batch: Batch, outcome: Outcome) -> None:
        assert outcome.latents is not None
        if not np.isfinite(outcome.latents).all():
            raise NonFiniteLatents(
                f"the original's latents are not finite (samples {list(batch.samples)}); try another precision"
            )
        latents = dict(zip(batch.samples, outcome.latents, strict=True))
        self.store.record_baseline(latents, outcome.calls)
        self._baseline |= latents

    def _first_moments(self, samples: int) -> Moments:
        """The moments of the baseline's first samples."""
        if samples not in self._baseline_moments:
            latents = self._reference(range(samples))
            self._baseline_moments[samples] = moments(latents, latents)
        return self._baseline_moments[samples]

    def _reference(self, samples: range) -> Floats:
        """The latents of the baseline."""
        return np.stack([self._baseline[sample] for sample in samples])


def key_of(candidate: Candidate) -> Key:
    """By what the store knows a modification."""
    return candidate.operator, candidate.modification
