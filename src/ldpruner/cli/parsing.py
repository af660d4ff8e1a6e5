"""What the words of a command line mean: probes, budgets, choices, arguments of a pipeline's call."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from ldpruner.budget import Budget
    from ldpruner.pipelines.probe import Probe
    from ldpruner.scoring.importance import Metric
    from ldpruner.selection.plan import Rule


def probe_of(
    samples: int, steps: int, seed: int, prompts: Path | None, guidance: float | None, pipeline_arg: list[str] | None
) -> "Probe":
    """The probe of the options that every sampling command has."""
    from ldpruner.pipelines.probe import Probe, read_prompts

    return Probe(
        samples=samples,
        steps=steps,
        seed=seed,
        guidance=guidance,
        prompts=read_prompts(prompts) if prompts is not None else None,
        call=call_arguments(pipeline_arg),
    )


def call_arguments(texts: Sequence[str] | None) -> dict[str, Any]:
    """The arguments of `--pipeline-arg name=value`; a value that is JSON is read as such, an image is a path."""
    if not texts:
        return {}
    from ldpruner.recipes import opened_images

    return opened_images({name: literal(value) for name, value in pairs(texts, "--pipeline-arg").items()})


def budget_of(texts: Sequence[str]) -> "Budget":
    """The budget of `--budget name=value`, repeated or with commas."""
    from ldpruner.budget import Budget

    parts = [part for text in texts for part in text.split(",")]
    return Budget(**{name: literal(value) for name, value in pairs(parts, "--budget").items()})


def changed(probe: "Probe", samples: int, prompts: Path | None, pipeline_arg: list[str] | None) -> "Probe":
    """A run's probe with another number of samples, other prompts and other arguments of the call."""
    from ldpruner.pipelines.probe import read_prompts

    texts = read_prompts(prompts) if prompts is not None else probe.prompts
    return probe.replace(samples=samples, prompts=texts, call={**probe.call, **call_arguments(pipeline_arg)})


def metric_of(name: str) -> "Metric":
    """The score of `--metric`."""
    from ldpruner.scoring.importance import METRICS

    metric: Metric = one_of(name, METRICS, "--metric")
    return metric


def rule_of(name: str) -> "Rule":
    """The rule of `--rule`."""
    from ldpruner.selection.plan import RULES

    rule: Rule = one_of(name, RULES, "--rule")
    return rule


def one_of(value: str, choices: Sequence[str], option: str) -> Any:
    """The value, if it is one that the option knows."""
    if value not in choices:
        raise typer.BadParameter(f"{option} {value!r}: choose one of {', '.join(choices)}")
    return value


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """Options of the form name=value; none may come twice."""
    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{option} {text!r}: write it as name=value")
        if name in values:
            raise typer.BadParameter(f"{option} {name!r} is given twice: {values[name]!r} and {value!r}; choose one")
        values[name] = value
    return values


def literal(value: str) -> Any:
    """What a text means as JSON; else the text itself."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
