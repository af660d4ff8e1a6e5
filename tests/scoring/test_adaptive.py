"""Racing: as good a plan for a fraction of the calls, the same when it was stopped on the way."""

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.scoring.adaptive import AdaptiveScorer
from ldpruner.scoring.importance import cost
from ldpruner.scoring.runner import Scoring

PROBE = ldpruner.Probe(samples=32, steps=2)
BUDGETS = (ldpruner.Budget(macs=0.7), ldpruner.Budget(macs=0.5))


@pytest.fixture(scope="module")
def exhaustive(tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...]) -> ldpruner.Scores:
    return ldpruner.score_operators(tiny, operators, PROBE, budgets=None)


@pytest.fixture(scope="module")
def finished(tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...]) -> tuple[ldpruner.Scores, int]:
    """The scores of a race, and how many draws it took."""
    with Scoring(tiny, operators, PROBE) as scoring:
        draws = sum(1 for _ in AdaptiveScorer(scoring, BUDGETS))
        return scoring.scores(), draws


@pytest.fixture(scope="module")
def raced(finished: tuple[ldpruner.Scores, int]) -> ldpruner.Scores:
    return finished[0]


def objective(plan: ldpruner.Plan, scores: ldpruner.Scores) -> float:
    """The damage of a plan by scores that may not be those that made it."""
    known = {(one.operator, one.modification): one.score for one in scores.scores}
    return sum(cost(known[one.operator, one.modification], scores.metric) for one in plan.removed)


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_a_race_ends_at_a_plan_as_good_as_that_of_all_samples(
    budget: ldpruner.Budget, exhaustive: ldpruner.Scores, raced: ldpruner.Scores
) -> None:
    best, found = (ldpruner.select(scores, budget) for scores in (exhaustive, raced))
    assert objective(found, exhaustive) <= 1.05 * objective(best, exhaustive)


def test_a_race_takes_a_fraction_of_the_calls(exhaustive: ldpruner.Scores, raced: ldpruner.Scores) -> None:
    assert raced.denoiser_calls < 0.3 * exhaustive.denoiser_calls
    samples = [one.samples for one in raced.scores if one.is_known]
    assert min(samples) == 0  # what was looked at only
    assert np.median(samples) <= 4


def test_what_saves_too_little_to_matter_is_not_drawn(
    tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], raced: ldpruner.Scores
) -> None:
    for one in raced.scores:
        assert one.is_known == (one.savings.macs / raced.costs.macs >= 0.001 * 0.3), one.operator
    assert any(not one.is_known for one in raced.scores)
    assert not ldpruner.select(raced, BUDGETS[0]).provenance["exhaustive"]
    all_of_them = [ldpruner.Budget(operators=2), ldpruner.Budget(macs=0.001)]
    for budget in all_of_them:
        with Scoring(tiny, operators, PROBE) as scoring:
            assert AdaptiveScorer(scoring, [budget])._worth == scoring.candidates


def test_a_race_takes_no_more_than_three_samples_of_each_for_a_budget(
    tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...]
) -> None:
    with Scoring(tiny, operators, PROBE) as scoring:
        race = AdaptiveScorer(scoring, [BUDGETS[1]])
        priorities = dict.fromkeys(scoring.candidates, 1.0)
        none, one = (dict.fromkeys(scoring.candidates, number) for number in (0, 1))
        assert set(race._affordable(none, priorities).values()) == {1}
        few = dict.fromkeys(scoring.candidates[:7], 16)
        counts = (one | few | race._affordable(one | few, priorities)).values()
        assert 2.9 * (1 + len(counts)) < race._looked + sum(counts) + max(counts) <= 3 * (1 + len(counts))
        unknown = dict.fromkeys(scoring.candidates, float("inf"))
        assert race._affordable(one | few, unknown).keys() == one.keys()


def test_every_score_has_an_interval(exhaustive: ldpruner.Scores, raced: ldpruner.Scores) -> None:
    pairs = [(few, many) for few, many in zip(raced.scores, exhaustive.scores, strict=True) if few.is_known]
    pairs = [pair for pair in pairs if not pair[0].stopped]
    held = 0
    for few, many in pairs:
        assert few.interval is not None
        assert few.interval[0] <= few.score <= few.interval[1]
        held += few.interval[0] <= many.score <= few.interval[1]
    assert held >= 0.75 * len(pairs)


def test_how_alike_other_seeds_rank_is_told(
    tiny: DiffusionPipeline,
    operators: tuple[ldpruner.Operator, ...],
    exhaustive: ldpruner.Scores,
    raced: ldpruner.Scores,
) -> None:
    seeds = [
        ldpruner.score_operators(tiny, operators, ldpruner.Probe(samples=4, steps=2, seed=seed), budgets=None)
        for seed in (100, 200)
    ]
    correlation = scipy.stats.spearmanr(*([one.score for one in scores.scores] for scores in seeds)).statistic
    assert seeds[0].rank_stability == pytest.approx(correlation, abs=0.05)
    assert (raced.rank_stability or 0) < (exhaustive.rank_stability or 0) < 1


def test_what_leaves_the_path_is_stopped_on_the_way_and_scores_more_than_is_said(
    tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...]
) -> None:
    probe, mild = ldpruner.Probe(samples=4, steps=6), ldpruner.Budget(macs=0.95)
    whole, same = (
        ldpruner.score_operators(tiny, operators, one, budgets=None)
        for one in (probe, probe.model_copy(update={"samples": 1}))
    )
    with Scoring(tiny, operators, probe) as scoring:
        race = AdaptiveScorer(scoring, [mild])
        for _ in race:
            pass
        raced = scoring.scores()
        stopped = [place for place, one in enumerate(raced.scores) if one.stopped]
        ends = [scoring.store.stopped((one.operator, one.modification)) for one in raced.scores if one.stopped]
    assert all(end is not None and end[0] < probe.steps - 1 for end in ends)
    assert stopped
    assert all(raced.scores[place].score < same.scores[place].score for place in stopped)
    assert race._unknown(raced) == {}
    all_stopped = tuple(one.model_copy(update={"stopped": True}) for one in raced.scores)
    unknown = race._unknown(raced.model_copy(update={"scores": all_stopped}))
    assert len(unknown) == len(ldpruner.select(raced, mild).removed)
    names = {(one.operator, one.modification) for one in ldpruner.select(whole, mild).removed}
    assert not names & {(raced.scores[place].operator, raced.scores[place].modification) for place in stopped}


def test_what_was_stopped_is_drawn_to_the_end_when_more_is_to_go(
    tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], tmp_path: Path
) -> None:
    probe, budgets = ldpruner.Probe(samples=4, steps=6), [ldpruner.Budget(macs=kept) for kept in (0.95, 0.3)]
    mild, strict = (ldpruner.score_operators(tiny, operators, probe, run=tmp_path, budgets=[one]) for one in budgets)
    assert sum(one.stopped for one in mild.scores) > sum(one.stopped for one in strict.scores)
    chosen = {(one.operator, one.modification) for one in ldpruner.select(strict, budgets[1]).removed}
    assert not any(one.stopped for one in strict.scores if (one.operator, one.modification) in chosen)
    whole = ldpruner.score_operators(tiny, operators, probe, run=tmp_path, budgets=None)
    assert not any(one.stopped for one in whole.scores)


@pytest.mark.parametrize("stop", [1, *(pytest.param(stop, marks=pytest.mark.extensive) for stop in (20, -3))])
def test_a_race_that_was_stopped_comes_to_the_same_scores(
    stop: int,
    tiny: DiffusionPipeline,
    operators: tuple[ldpruner.Operator, ...],
    finished: tuple[ldpruner.Scores, int],
    tmp_path: Path,
) -> None:
    raced, draws = finished
    with Scoring(tiny, operators, PROBE, run=tmp_path) as scoring:
        scoring.store.set_fact("costs", {"costs": raced.costs.model_dump(), "shares": scoring._costs()[1]})
        race = iter(AdaptiveScorer(scoring, BUDGETS))
        for _ in range(stop % draws):
            next(race)
    again = ldpruner.score_operators(tiny, operators, PROBE, run=tmp_path, budgets=BUDGETS)
    assert [one.score for one in again.scores] == [one.score for one in raced.scores]
    assert again.denoiser_calls == raced.denoiser_calls


def test_a_race_for_another_budget_goes_on_from_what_is_there(
    tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...], tmp_path: Path
) -> None:
    first, more = (
        ldpruner.score_operators(tiny, operators, PROBE, run=tmp_path, budgets=[budget]) for budget in BUDGETS
    )
    assert all(one.samples <= other.samples for one, other in zip(first.scores, more.scores, strict=True))
    whole = ldpruner.score_operators(tiny, operators, PROBE, run=tmp_path, budgets=None)
    assert {one.samples for one in whole.scores} == {PROBE.samples}


def test_a_race_for_what_cannot_be_reached_ends_after_the_first_samples(
    tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...]
) -> None:
    with Scoring(tiny, operators[:6], PROBE) as scoring:
        race = AdaptiveScorer(scoring, [ldpruner.Budget(macs=0.01)])
        assert sum(1 for _ in race) == len(race)
        assert {one.samples for one in scoring.scores().scores} == {1}


def test_a_probe_of_one_sample_is_raced_for_too(
    tiny: DiffusionPipeline, operators: tuple[ldpruner.Operator, ...]
) -> None:
    scores = ldpruner.score_operators(tiny, operators[:6], ldpruner.Probe(samples=1, steps=2))
    assert {one.samples for one in scores.scores} == {1}


def test_a_forecast_says_what_a_race_takes_at_least_and_at_most_and_what_all_samples_take(
    tiny: DiffusionPipeline,
    operators: tuple[ldpruner.Operator, ...],
    exhaustive: ldpruner.Scores,
    raced: ldpruner.Scores,
) -> None:
    with Scoring(tiny, operators, PROBE) as scoring:
        forecast, whole = (
            AdaptiveScorer(scoring, BUDGETS).forecast(exhaustive=everything) for everything in (False, True)
        )
        assert scoring.store.denoiser_calls() == 0
    assert forecast.modifications == whole.modifications == len(exhaustive.scores)
    assert whole.denoiser_calls == (exhaustive.denoiser_calls, exhaustive.denoiser_calls)
    least, most = forecast.denoiser_calls
    assert least <= raced.denoiser_calls <= most
    assert most == min(1, (1 + 2 * len(BUDGETS)) / PROBE.samples) * exhaustive.denoiser_calls
    assert 0 < forecast.seconds[0] < forecast.seconds[1] <= whole.seconds[0]
