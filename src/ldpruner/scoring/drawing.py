"""What has been drawn for scores, and drawing more of it: nothing that is finished is drawn again."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ldpruner.errors import NonFiniteLatents
from ldpruner.operators.discovery import Candidate
from ldpruner.pipelines.probe import Probe
from ldpruner.scoring.blocks import Block, finished_first, grouped, layout
from ldpruner.scoring.estimates import Curve
from ldpruner.scoring.importance import Floats, Metric, Moments, importance, merged, moments
from ldpruner.scoring.looks import SAMPLES
from ldpruner.scoring.store import BASELINE, Key, RunStore
from ldpruner.scoring.worker import Executor, Outcome, Task

LOOKED = 64  # modifications at once

LOOK = "a look at many"  # by the name of which progress is told


class Draw(NamedTuple):
    """Blocks of samples that are drawn together: of a modification, or untouched ones."""

    candidate: Candidate | None
    blocks: tuple[Block, ...]

    @property
    def key(self) -> Key:
        return key_of(self.candidate)

    @property
    def name(self) -> str:
        return self.candidate.operator if self.candidate is not None else "untouched"


class Drawing:
    """The draws of a scoring run, kept in its ledger.

    Args:
        component: the denoiser's name in the pipeline.
        probe: what samples there are.
        ledger: where what is drawn is kept.
        executor: what draws.
        batch_size: how many samples are drawn at once.

    Attributes:
        failures: why modifications could not be drawn.
    """

    def __init__(self, component: str, probe: Probe, store: RunStore, executor: Executor, batch_size: int) -> None:
        self.component, self.probe, self.batch_size = component, probe, batch_size
        self.store, self.executor = store, executor
        self.failures = store.failures()
        self._untouched, self._path = dict[int, Floats](), store.untouched_path()
        for block, latents in store.baseline().items():
            self._untouched.update(zip(block.samples, latents, strict=True))
        self._finished, self._seen = store.finished_blocks(), store.looks()
        self._curves: dict[tuple[Key, Metric], Curve] = {}

    def draws(self, wanted: Mapping[Candidate, int]) -> list[Draw]:
        """All draws, finished ones included, by which the first samples of some modifications come to be there.

        The untouched samples that they are compared with come first.
        """
        numbers = {None: max(wanted.values(), default=0)} | dict(wanted)
        return [Draw(one, tuple(group)) for one, number in numbers.items() for group in self._groups(one, number)]

    def _groups(self, candidate: Candidate | None, number: int) -> list[list[Block]]:
        finished = self._finished.get(key_of(candidate), {})
        return grouped(layout(min(number, self.probe.samples), finished), self.batch_size)

    def draw(self, wanted: Mapping[Candidate, int], limit: float = math.inf) -> Iterator[str]:
        """Draws what is missing of some modifications' first samples; yields the operator's name after each draw.

        Args:
            wanted: of each modification how many samples.
            limit: the mean squared distance from the untouched path beyond which a modification is not drawn on.

        Raises:
            NonFiniteLatents: the untouched pipeline's own latents are not finite.
        """
        due = []
        for draw in self.draws(wanted):
            missing = self._missing(draw, limit)
            if missing:
                due.append(Draw(draw.candidate, missing))
            else:
                yield draw.name
        yield from self._execute(due, limit)

    def looks(self, candidates: Sequence[Candidate]) -> list[tuple[int, list[Candidate]]]:
        """Samples, and which modifications are looked at on each, finished ones included."""
        parts = [list(candidates[start : start + LOOKED]) for start in range(0, len(candidates), LOOKED)]
        return list(itertools.product(range(min(SAMPLES, self.probe.samples)), parts))

    def look(self, candidates: Sequence[Candidate]) -> Iterator[str]:
        """Looks at modifications (see `looks.look`) where that was not done yet; yields a name after each part."""
        asked: dict[Task, list[Key]] = {}
        for sample, part in self.looks(candidates):
            due = [one for one in part if sample not in self._seen.get(key_of(one), {})]
            if due:
                removals = tuple(one.removal for one in due)
                task = Task(self.component, self.probe, None, (sample,), 1, looks=removals)
                asked[task] = [key_of(one) for one in due]
            else:
                yield LOOK
        for task, outcome in self.executor.run(asked):
            assert outcome.effects is not None
            (sample,), effects = task.samples, dict(zip(asked[task], outcome.effects.tolist(), strict=True))
            self.store.record_looks(sample, effects, outcome.calls)
            for key, effect in effects.items():
                self._seen.setdefault(key, {})[sample] = effect
            yield LOOK

    def effect(self, candidate: Candidate) -> float | None:
        """How far a modification was seen to move what the denoiser finds, as a mean square; None if it was not.

        Between the mean over samples and their geometric mean, as a mean of few hangs on the farthest.
        """
        key = key_of(candidate)
        seen = np.array([self._seen.get(key, {}).get(one, np.nan) for one in range(min(SAMPLES, self.probe.samples))])
        there = seen[seen != 0]  # where a draw has few steps, none is left for some samples
        if not len(there) or not np.isfinite(there).all():
            return None
        return float(np.sqrt(there.mean() * np.exp(np.log(there).mean())))

    def curve(self, candidate: Candidate, metric: Metric) -> Curve | None:
        """The scores of a modification by the number of samples; None if nothing was drawn, or in vain."""
        key = key_of(candidate)
        if key in self.failures:
            return None
        if (key, metric) not in self._curves:
            curve = self._whole_curve(key, metric) or self._stopped_curve(key, metric)
            if curve is None:
                return None
            self._curves[key, metric] = curve
        return self._curves[key, metric]

    def _execute(self, due: Sequence[Draw], limit: float) -> Iterator[str]:
        asked: dict[Task, Draw] = {}

        def tasks() -> Iterator[Task]:
            for draw in due:
                if self._is_sound(draw.key):
                    task = self._task(draw, limit)
                    asked[task] = draw
                    yield task

        done, waiting = 0, list[tuple[Draw, Outcome]]()  # for the untouched latents, which may come later
        for task, outcome in self.executor.run(tasks(), self._path):
            waiting.append((asked.pop(task), outcome))
            while ready := next((one for one in waiting if self._can_be_compared(one[0])), None):
                waiting.remove(ready)
                self._record(*ready)
                done += 1
                yield ready[0].name
        yield from (draw.name for draw in due[done:])  # more of what turned out to be of no use

    def _task(self, draw: Draw, limit: float) -> Task:
        samples = tuple(itertools.chain.from_iterable(one.samples for one in draw.blocks))
        removal = draw.candidate.removal if draw.candidate is not None else None
        return Task(self.component, self.probe, removal, samples, self.batch_size, limit)

    def _missing(self, draw: Draw, limit: float) -> tuple[Block, ...]:
        if not self._is_sound(draw.key):
            return ()
        if draw.candidate is None:
            return tuple(block for block in draw.blocks if not self._has_twins(block))
        finished = self._finished.get(draw.key, {})
        stopped = None if finished else self.store.stopped(draw.key)
        if stopped is not None and not stopped[1].squared_errors.mean() <= limit:
            return ()
        return tuple(block for block in draw.blocks if block not in finished)

    def _is_sound(self, key: Key) -> bool:
        """Whether a modification can be drawn, as far as is known."""
        return key not in self.failures and all(self._finished.get(key, {}).values())

    def _has_twins(self, block: Block) -> bool:
        return all(sample in self._untouched for sample in block.samples)

    def _twins(self, block: Block) -> Floats:
        """The untouched latents of a block's samples."""
        return np.stack([self._untouched[sample] for sample in block.samples])

    def _can_be_compared(self, draw: Draw) -> bool:
        return draw.candidate is None or all(map(self._has_twins, draw.blocks))

    def _record(self, draw: Draw, outcome: Outcome) -> None:
        self._curves = {known: curve for known, curve in self._curves.items() if known[0] != draw.key}
        if outcome.failure is not None:
            self.failures[draw.key] = outcome.failure
            self.store.record_failure(draw.key, outcome.failure)
            return
        assert outcome.latents is not None
        if outcome.stopped is not None:
            drawn = moments(outcome.latents, self._on_path(outcome.stopped, len(outcome.latents)))
            self.store.record_stopped(draw.key, outcome.stopped, drawn, outcome.calls)
            return
        ends = np.cumsum([len(block.samples) for block in draw.blocks])[:-1]
        latents = dict(zip(draw.blocks, np.split(outcome.latents, ends), strict=True))
        if draw.candidate is None:
            self._record_untouched(latents, outcome)
            return
        found = {block: moments(one, self._twins(block)) for block, one in latents.items()}
        self.store.record(draw.key, found, outcome.calls)
        self._finish(draw.key, found)

    def _record_untouched(self, latents: Mapping[Block, Floats], outcome: Outcome) -> None:
        for block, one in latents.items():
            if not np.isfinite(one).all():
                raise NonFiniteLatents(
                    f"the untouched pipeline's latents are not finite (samples {list(block.samples)}); "
                    "try another precision"
                )
        found = {block: moments(one, one) for block, one in latents.items()}
        path = outcome.path if any(block.start == 0 for block in latents) else None
        self.store.record(BASELINE, found, outcome.calls, latents, path)
        for block, one in latents.items():
            self._untouched.update(zip(block.samples, one, strict=True))
        self._path = self._path if path is None else path
        self._finish(BASELINE, found)

    def _finish(self, key: Key, found: Mapping[Block, Moments]) -> None:
        self._finished.setdefault(key, {}).update({block: one.is_finite for block, one in found.items()})

    def _on_path(self, step: int, samples: int) -> Floats:
        """The untouched latents of the first samples after a step."""
        assert self._path is not None
        return self._path[step, :samples]

    def _whole_curve(self, key: Key, metric: Metric) -> Curve | None:
        whole = finished_first(self.probe.samples, self._finished.get(key, {}))
        if not whole:
            return None
        blocks, scores = self.store.finished(key), dict[int, float]()
        base = {block: moments(self._twins(block), self._twins(block)) for block in whole}
        ends = [block.stop for block in whole]
        for place, end in enumerate(ends):
            if end.bit_count() == 1 or end == ends[-1]:
                drawn, beside = (merged([one[block] for block in whole[: place + 1]]) for one in (blocks, base))
                scores[end] = importance(beside, drawn, metric)
        return Curve(scores, np.concatenate([blocks[block].squared_errors for block in whole]))

    def _stopped_curve(self, key: Key, metric: Metric) -> Curve | None:
        known = self.store.stopped(key)
        if known is None:
            return None
        step, drawn = known
        baseline_sample = self._on_path(step, drawn.count)
        return Curve(
            {drawn.count: importance(moments(baseline_sample, baseline_sample), drawn, metric)},
            drawn.squared_errors,
            stopped=True,
        )


def key_of(candidate: Candidate | None) -> Key:
    """By what the ledger knows a modification."""
    return (candidate.operator, candidate.modification) if candidate is not None else BASELINE
