"""Adaptive scoring: as good a plan for a fraction of the calls, the same when it was stopped on the way."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.scoring.adaptive import MAX_SAMPLES, AdaptiveScorer
from ldpruner.scoring.importance import cost
from ldpruner.scoring.runner import ScoringRun
from ldpruner.scoring.sampler import key_of
from ldpruner.scoring.worker import LocalExecutor, Outcome, Task

Operators = tuple[ldpruner.Operator, ...]

PROBE = ldpruner.Probe(samples=32, steps=2)
BUDGETS = (ldpruner.Budget(macs=0.7), ldpruner.Budget(macs=0.5))


@pytest.fixture(scope="module")
def exhaustive(tiny: DiffusionPipeline, operators: Operators) -> ldpruner.Scores:
    return ldpruner.score_operators(tiny, operators, PROBE, budgets=None)


@pytest.fixture(scope="module")
def adaptive(tiny: DiffusionPipeline, operators: Operators) -> ldpruner.Scores:
    return ldpruner.score_operators(tiny, operators, PROBE, budgets=BUDGETS)


def objective(plan: ldpruner.Plan, scores: ldpruner.Scores) -> float:
    """The cost of a plan by scores that may not be those that made it."""
    known = {(one.operator, one.modification): one.score for one in scores.scores}
    return sum(cost(known[one.operator, one.modification], scores.metric) for one in plan.removed)


@pytest.mark.extensive
@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_the_plan_is_as_good_as_that_of_all_samples(
    budget: ldpruner.Budget, exhaustive: ldpruner.Scores, adaptive: ldpruner.Scores
) -> None:
    best, plan = (ldpruner.select(scores, budget) for scores in (exhaustive, adaptive))
    assert objective(plan, exhaustive) <= 1.1 * objective(best, exhaustive)


def test_it_takes_a_fraction_of_the_calls(exhaustive: ldpruner.Scores, adaptive: ldpruner.Scores) -> None:
    each = 1 + len(BUDGETS) * (MAX_SAMPLES - 1)
    assert adaptive.denoiser_calls <= each / PROBE.samples * exhaustive.denoiser_calls
    samples = [score.samples for score in adaptive.scores if score.is_known]
    assert min(samples) == 1
    assert max(samples) > 4


def test_what_saves_too_little_to_matter_is_not_sampled(
    tiny: DiffusionPipeline, operators: Operators, adaptive: ldpruner.Scores
) -> None:
    for score in adaptive.scores:
        assert score.is_known == (score.savings.macs / adaptive.costs.macs >= 0.001 * 0.3), score.operator
    assert any(not score.is_known for score in adaptive.scores)
    assert not ldpruner.select(adaptive, BUDGETS[0]).provenance["exhaustive"]
    for budget in (ldpruner.Budget(operators=2), ldpruner.Budget(macs=0.001)):  # every removal may be needed
        with ScoringRun(tiny, operators, PROBE) as scoring:
            assert len(AdaptiveScorer(scoring, [budget])._scores) == len(scoring.candidates)


def test_scores_have_an_interval_that_most_often_holds_the_score_of_all_samples(
    exhaustive: ldpruner.Scores, adaptive: ldpruner.Scores
) -> None:
    pairs = [(few, many) for few, many in zip(adaptive.scores, exhaustive.scores, strict=True) if few.is_known]
    held = 0
    for few, many in pairs:
        assert few.interval is not None
        assert few.interval[0] <= few.score <= few.interval[1]
        held += few.interval[0] <= many.score <= few.interval[1]
    assert held >= 0.8 * len(pairs)


@pytest.mark.extensive
def test_rank_stability_is_about_the_correlation_of_two_seeds(
    tiny: DiffusionPipeline, operators: Operators, exhaustive: ldpruner.Scores, adaptive: ldpruner.Scores
) -> None:
    seeds = [
        ldpruner.score_operators(tiny, operators, ldpruner.Probe(samples=4, steps=2, seed=seed), budgets=None)
        for seed in (100, 200)
    ]
    correlation = scipy.stats.spearmanr(*([score.score for score in scores.scores] for scores in seeds)).statistic
    assert seeds[0].rank_stability is not None
    assert correlation - 0.15 < seeds[0].rank_stability < 1
    assert (adaptive.rank_stability or 0) < (exhaustive.rank_stability or 0) < 1


# Stopping and resuming


class Killed(Exception):
    """The process ends here."""


class Mortal(LocalExecutor):
    """Dies once a number of tasks is done."""

    def __init__(self, pipeline: DiffusionPipeline, lives: int) -> None:
        super().__init__(pipeline)
        self.lives = lives

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Outcome]]:
        for done in super().run(tasks):
            if not self.lives:
                raise Killed
            self.lives -= 1
            yield done


def score_on(
    tiny: DiffusionPipeline, operators: Operators, run: Path | None, costs: object, executor: LocalExecutor | None
) -> ldpruner.Scores:
    """Adaptive scores with costs as measured once."""
    probe, budgets = ldpruner.Probe(samples=8, steps=1), [ldpruner.Budget(macs=0.8), ldpruner.Budget(macs=0.9)]
    with ScoringRun(tiny, operators, probe, run=run, batch_size=3, executor=executor) as scoring:
        scoring.store.set_fact("costs", costs)
        for _ in AdaptiveScorer(scoring, budgets):
            pass
        return scoring.scores()


@pytest.mark.extensive
@pytest.mark.case(number=6)
def test_a_run_that_was_killed_at_any_instant_comes_to_the_same_bits(
    tiny: DiffusionPipeline, operators: Operators, tmp_path: Path
) -> None:
    chosen = tuple(operator for operator in operators if operator.macs > 0.02 * max(one.macs for one in operators))[:6]
    with ScoringRun(tiny, chosen, PROBE) as scoring:
        scoring.scores()
        costs = scoring.store.fact("costs")
    counter = Mortal(tiny, 1000)
    whole = score_on(tiny, chosen, None, costs, counter)
    tasks = 1000 - counter.lives
    assert tasks > 10
    assert len({score.samples for score in whole.scores}) > 2
    for instant in range(tasks):
        run = tmp_path / str(instant)
        with pytest.raises(Killed):
            score_on(tiny, chosen, run, costs, Mortal(tiny, instant))
        left = Mortal(tiny, 1000)
        assert score_on(tiny, chosen, run, costs, left) == whole
        assert 1000 - left.lives == tasks - instant  # nothing that was finished is sampled again


@pytest.mark.extensive
def test_a_run_for_another_budget_goes_on_from_what_is_there(
    tiny: DiffusionPipeline, operators: Operators, tmp_path: Path
) -> None:
    first, more = (
        ldpruner.score_operators(tiny, operators, PROBE, run=tmp_path, budgets=[budget]) for budget in BUDGETS
    )
    assert all(one.samples <= other.samples for one, other in zip(first.scores, more.scores, strict=True))
    whole = ldpruner.score_operators(tiny, operators, PROBE, run=tmp_path, budgets=None)
    assert {score.samples for score in whole.scores} == {PROBE.samples}


def test_scores_after_adaptive_scoring_are_those_of_exhaustive_scoring(
    tiny: DiffusionPipeline, operators: Operators, tmp_path: Path, exhaustive: ldpruner.Scores
) -> None:
    few = operators[::8]
    for budgets in (BUDGETS, None):
        scores = ldpruner.score_operators(tiny, few, PROBE, run=tmp_path, budgets=budgets)
    known = {(one.operator, one.modification): one.score for one in exhaustive.scores}
    for score in scores.scores:
        assert score.score == pytest.approx(known[score.operator, score.modification], rel=1e-4)


# Limits


def test_a_budget_that_cannot_be_reached_takes_one_sample_of_each(
    tiny: DiffusionPipeline, operators: Operators
) -> None:
    with ScoringRun(tiny, operators[:6], PROBE) as scoring:
        scorer = AdaptiveScorer(scoring, [ldpruner.Budget(macs=0.01)])
        assert sum(1 for _ in scorer) == len(scorer)
        assert {score.samples for score in scoring.scores().scores} == {1}


@pytest.mark.parametrize(("samples", "mean"), [(1, 1), (2, 2), (16, 5), (64, 5.4), (200, 19)])
def test_the_samples_are_limited_to_a_twentieth_or_three_of_each_for_a_budget(
    tiny: DiffusionPipeline, operators: Operators, samples: int, mean: float
) -> None:
    with ScoringRun(tiny, operators, PROBE.replace(samples=samples)) as scoring:
        scorer = AdaptiveScorer(scoring, BUDGETS)
        assert scorer._allowed == int(mean * (1 + len(scoring.candidates)))
        first = scorer._first
        assert first.sum() + first.max() <= scorer._allowed
        more = first
        for _ in range(8):
            more = scorer._doubled(more, np.ones(len(more)))
        assert more.sum() + more.max() <= scorer._allowed
        assert more.max() <= samples


def test_a_probe_of_one_sample_is_enough(tiny: DiffusionPipeline, operators: Operators) -> None:
    scores = ldpruner.score_operators(tiny, operators[:6], ldpruner.Probe(samples=1, steps=2))
    assert {score.samples for score in scores.scores} == {1}


def test_what_cannot_be_removed_is_left_out(tiny: DiffusionPipeline, operators: Operators) -> None:
    with ScoringRun(tiny, operators[:6], PROBE) as scoring:
        scorer = AdaptiveScorer(scoring, [ldpruner.Budget(operators=2)])
        broken = scoring.candidates[0]
        scoring.sampler.failures[key_of(broken)] = "RuntimeError: no"
        for _ in scorer:
            pass
        scores = scoring.scores().scores
    assert (scores[0].score, scores[0].samples, scores[0].failure) == (np.inf, 0, "RuntimeError: no")
    assert all(np.isfinite(score.score) for score in scores[1:])


@pytest.mark.case(name="arguments-that-mean-nothing")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budgets": ()}, "give a list of them, or None"),
        ({"budgets": ldpruner.Budget(macs=0.5)}, "give a list of them, or None"),
        ({"metric": "taste"}, "metric 'taste' does not exist; .*accepted: mean_std"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"batch_size": True}, "batch_size=True"),
        ({"operators": ()}, "operators is empty"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_arguments_that_mean_nothing_are_refused_before_anything_is_sampled(
    tiny: DiffusionPipeline, probe: ldpruner.Probe, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ldpruner.LdPrunerError, match=words):
        ldpruner.score_operators(tiny, probe=probe, **options)


def test_an_argument_that_a_pipeline_cannot_use_is_one_line(tiny: DiffusionPipeline) -> None:
    probe = ldpruner.Probe(samples=2, steps=2, call={"eta": "much"})
    with pytest.raises(ldpruner.LdPrunerError, match=r"could not be run with \['batch_size', 'eta'") as caught:
        ldpruner.score_operators(tiny, probe=probe)
    assert "\n" not in str(caught.value)
