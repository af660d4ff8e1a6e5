"""Scoring operators: every modification on every sample of the probe, as in the paper."""

import contextlib
import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from ldpruner.budget import Budget
from ldpruner.errors import NothingToRemove, OperatorNotFound, ProbeError
from ldpruner.operators.choosing import choose_operators, default_granularity
from ldpruner.operators.discovery import Candidate, Granularity, Operator
from ldpruner.operators.native import native_groups
from ldpruner.operators.patching import MISFITS
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.fingerprints import architecture, module_dtype, weights_digest
from ldpruner.pipelines.offload import module_device, without_offload
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import networks, schedulers
from ldpruner.pipelines.sampling import BATCH_SIZE, largest_batch
from ldpruner.profiling.costs import Costs, measure_costs
from ldpruner.profiling.machine import installed_versions, machine_of
from ldpruner.profiling.shares import module_shares, saved_share
from ldpruner.scoring.estimates import rank_stability, standard_error
from ldpruner.scoring.importance import METRICS, Metric
from ldpruner.scoring.results import Savings, Score, Scores
from ldpruner.scoring.sampler import Sampler, key_of
from ldpruner.scoring.store import RunStore
from ldpruner.scoring.worker import Executor, LocalExecutor
from ldpruner.values import check_choice, check_count

TIMED_PLANS = (0.8, 0.6, 0.4, 0.2)  # what each keeps of a denoiser call's time, by the sum of its savings

logger = logging.getLogger(__name__)


class ScoringRun:
    """A scoring run: an iterable with a length that samples everything, as in the paper, then `scores()`.

    The arguments are those of `score_operators`, which samples only what matters. Without `operators`, those are
    scored that `choose_operators` gives for `granularity`, `ignore`, `targets` and `native`.
    """

    def __init__(  # noqa: PLR0913  (each is a choice of its own)
        self,
        pipeline: DiffusionPipeline,
        operators: Sequence[Operator] | None = None,
        probe: Probe | None = None,
        *,
        component: str | None = None,
        granularity: Granularity | None = None,
        ignore: Sequence[str] = (),
        targets: Sequence[str] = (),
        native: bool = False,
        run: Path | str | None = None,
        metric: Metric = "mean_std",
        batch_size: int = BATCH_SIZE,
        executor: Executor | None = None,
    ) -> None:
        check_choice("metric", metric, METRICS, ProbeError)
        check_count("batch_size", batch_size, ProbeError)
        if operators is not None and not operators:
            raise NothingToRemove("operators is empty; leave it out to score all of them")
        self.pipeline, self.metric = pipeline, metric
        self.probe = self._completed(probe or Probe())
        component = operators[0].component if operators else component
        self.denoiser = find_denoiser(pipeline, component, self.probe.arguments(pipeline, [0]))
        self.granularity = granularity or default_granularity(self.denoiser.module)
        chosen: dict[str, Any] = {"granularity": self.granularity, "ignore": ignore, "targets": targets}
        self.operators = tuple(operators or choose_operators(self.denoiser, native=native, **chosen))
        self._check_operators()
        self.store = RunStore(run, self._identity())
        try:
            self.sampler = Sampler(
                self.denoiser.component,
                self.probe,
                self.store,
                executor or LocalExecutor(pipeline),
                batch_size if self._batches_are_safe() else 1,
            )
        except BaseException:
            self.store.close()
            raise

    def __enter__(self) -> "ScoringRun":
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def __len__(self) -> int:
        """How many batches are missing."""
        return len(self.sampler.missing(self._everything))

    def __iter__(self) -> Iterator[str]:
        """Samples what is missing; yields the operator's name after each batch."""
        return self.sampler.sample(self._everything)

    @property
    def candidates(self) -> list[Candidate]:
        return [candidate for operator in self.operators for candidate in operator.candidates]

    @property
    def _everything(self) -> dict[Candidate, int]:
        return dict.fromkeys(self.candidates, self.probe.samples)

    def scores(self, metric: Metric | None = None) -> Scores:
        """The scores of what has been sampled; any metric can be read off the same run.

        Args:
            metric: which score; that of the run if None.
        """
        metric = metric or self.metric
        costs, shares = self._costs()
        counts = {candidate: self.sampler.count(candidate) for candidate in self.candidates}
        values = dict(zip(counts, self.sampler.scores(counts, metric).tolist(), strict=True))
        scores = tuple(
            Score(
                operator=candidate.operator,
                module_type=operator.module_type,
                modification=candidate.modification,
                score=values[candidate],
                standard_error=standard_error(counts[candidate], metric) if math.isfinite(values[candidate]) else None,
                samples=counts[candidate],
                savings=self._savings(candidate, costs, shares),
                candidate=candidate,
                failure=self.sampler.failures.get(key_of(candidate)),
            )
            for operator in self.operators
            for candidate in operator.candidates
        )
        pairs = [(score.score, score.standard_error) for score in scores if score.standard_error is not None]
        return Scores(
            component=self.denoiser.component,
            architecture=architecture(self.denoiser.module),
            probe=self.probe,
            metric=metric,
            costs=costs,
            denoiser_calls=self.store.denoiser_calls(),
            scores=scores,
            rank_stability=rank_stability([score for score, _ in pairs], [error for _, error in pairs]),
        )

    def finish(self, model: str | None = None) -> Scores:
        """The scores, which are also kept in the run folder for the steps that follow.

        Args:
            model: the name from which later steps open the pipeline; None is where it was loaded from.
        """
        model = model or getattr(self.pipeline, "name_or_path", None)
        if model:
            self.store.set_fact("model", str(Path(model).resolve()) if Path(model).exists() else model)
        scores = self.scores()
        native = native_groups(self.denoiser.module, [candidate.removal for candidate in self.candidates])
        scores = scores.replace(latency_curve=self._latency_curve(scores), native=native)
        self.store.set_fact("scores", scores.model_dump(mode="json"))
        return scores

    def _costs(self) -> tuple[Costs, dict[str, float]]:
        """Measured once on a machine, and kept in the store."""
        fact = self.store.fact("costs")
        if fact is None or fact["costs"]["machine"] != machine_of(self.denoiser.module).model_dump():
            costs = measure_costs(self.pipeline, self.denoiser, self.probe)
            fact = {"costs": costs.model_dump(), "shares": module_shares(self.denoiser)}
            self.store.set_fact("costs", fact)
        return Costs(**fact["costs"]), fact["shares"]

    def _latency_curve(self, scores: Scores) -> tuple[tuple[float, float], ...]:
        """What plans save whose savings have some sums: measured once for the same scores, and kept in the store."""
        basis = {"metric": scores.metric, "calls": scores.denoiser_calls, "costs": scores.costs.model_dump()}
        fact = self.store.fact("latency_curve")
        if fact is None or fact["basis"] != basis:
            removable = [score for score in scores.scores if math.isfinite(score.score)]
            points = list(itertools.chain([(0.0, 0.0)], self._timed_plans(scores, removable), [(1.0, 1.0)]))
            sums, saved = zip(*points, strict=True)
            fact = {"basis": basis, "curve": list(zip(sums, itertools.accumulate(saved, max), strict=True))}
            self.store.set_fact("latency_curve", fact)
        return tuple(tuple(point) for point in fact["curve"])

    def _timed_plans(self, scores: Scores, removable: Sequence[Score]) -> Iterator[tuple[float, float]]:
        """The summed savings of plans, and what they save together, as fractions of the latency."""
        denoising = scores.costs.denoiser_ms / scores.costs.latency_ms
        for kept in TIMED_PLANS:
            knapsack = scores.knapsack(removable, Budget(latency=1 - denoising * (1 - kept)))
            plan = knapsack.solve(scores.removal_costs(removable))
            if plan is None:
                return
            removals = [score.candidate.removal for score in itertools.compress(removable, plan)]
            with contextlib.suppress(*MISFITS):  # removals that fit alone, and not together
                yield float(knapsack.savings[0] @ plan), denoising * saved_share(self.denoiser, removals)

    def _savings(self, candidate: Candidate, costs: Costs, shares: dict[str, float]) -> Savings:
        share = sum(shares.get(name, 0.0) for name in (candidate.operator, *candidate.cascaded))
        if candidate.modification == "shortcut":
            share -= shares.get(f"{candidate.operator}.{candidate.source}", 0.0)
        weight_bytes = next(self.denoiser.module.parameters()).element_size()
        return Savings(
            parameters=candidate.parameters,
            macs=candidate.macs,
            latency_ms=share * costs.denoiser_ms,
            memory=candidate.parameters * weight_bytes,
        )

    def _completed(self, probe: Probe) -> Probe:
        completed = probe.completed(self.pipeline)
        if completed is not probe:
            logger.info("no prompts given: using general ones; some of your own would fit your use better")
        return completed

    def _batches_are_safe(self) -> bool:
        """Whether samples may share a batch; tried once, and kept in the store."""
        is_safe = self.store.fact("batches_are_safe")
        if is_safe is None:
            is_safe = largest_batch(self.pipeline, self.probe, BATCH_SIZE) > 1
            self.store.set_fact("batches_are_safe", is_safe)
            if not is_safe and self.probe.samples > 1:
                logger.info("%s is sampled one by one: in a batch, samples change each other", self._name)
        return bool(is_safe)

    @property
    def _name(self) -> str:
        return type(self.pipeline).__name__

    def _identity(self) -> dict[str, object]:
        """What the results depend on. The number of samples is not part of it: a run can be extended."""
        steppers = schedulers(self.pipeline)
        with without_offload(self.pipeline):
            weights = {name: weights_digest(part) for name, part in networks(self.pipeline).items()}
        return {
            "pipeline": self._name,
            "component": self.denoiser.component,
            "architecture": architecture(self.denoiser.module).model_dump(exclude={"blocks"}),
            "weights": weights,
            "precision": str(module_dtype(self.denoiser.module)),
            "device": module_device(self.denoiser.module).type,
            "versions": installed_versions(),
            "scheduler": [repr((type(stepper).__name__, _own_settings(stepper))) for stepper in steppers],
            "probe": self.probe.model_dump(mode="json", exclude={"samples", "categories"}),
        }

    def _check_operators(self) -> None:
        names = {name for name, _ in self.denoiser.module.named_modules()}
        for operator in self.operators:
            if operator.name not in names:
                raise OperatorNotFound(operator.name, names)


def _own_settings(scheduler: Any) -> list[tuple[str, Any]]:
    """A scheduler's configuration, without what diffusers notes beside it: its version, what was left out."""
    return sorted((name, value) for name, value in scheduler.config.items() if not name.startswith("_"))
