"""The options name what the library accepts, without importing it."""

from typing import Any, get_args

from ldpruner.cli import options
from ldpruner.pipelines import sampling
from ldpruner.scoring.importance import METRICS
from ldpruner.selection.plan import RULES


def choices(option: Any) -> tuple[str, ...]:
    """The values of an annotated literal."""
    return get_args(get_args(option)[0])


def test_rules_and_metrics_are_those_of_the_library() -> None:
    assert choices(options.RULE) == RULES
    assert choices(options.METRIC) == METRICS


def test_the_batch_size_is_that_of_the_library() -> None:
    assert options.BATCH_SIZE == sampling.BATCH_SIZE
