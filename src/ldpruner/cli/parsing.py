"""What the words of a command line mean: probes, budgets, arguments of a pipeline's call."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldpruner.cli.answer import MadeBy
from ldpruner.cli.options import GUIDANCE, HEIGHT, PIPELINE_ARG, PROMPTS, SAMPLES, SEED, STEPS, WIDTH

if TYPE_CHECKING:
    from ldpruner.budget import Budget
    from ldpruner.pipelines.probe import Probe


def probe_of(
    prompts: PROMPTS = None,
    guidance: GUIDANCE = None,
    pipeline_arg: PIPELINE_ARG = None,
    samples: SAMPLES = 16,
    steps: STEPS = 25,
    height: HEIGHT = None,
    width: WIDTH = None,
    seed: SEED = 0,
) -> "Probe":
    """The probe of the options that the commands have which score."""
    from ldpruner.pipelines.probe import Probe

    call = call_arguments(pipeline_arg)
    size = {name: side for name, side in (("height", height), ("width", width)) if side is not None}
    if twice := sorted(size.keys() & call.keys()):
        raise typer.BadParameter(f"--{twice[0]} and --pipeline-arg {twice[0]} are given; choose one")
    call |= size
    return Probe(samples=samples, steps=steps, seed=seed, guidance=guidance, prompts=prompts, call=call)


PROBE = Annotated["Probe", MadeBy(probe_of)]


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
    probe = probe.with_call(call_arguments(pipeline_arg))
    probe.check_complete()
    return probe.replace(samples=samples, prompts=prompts or probe.prompts)


def import_from_current_folder() -> None:
    """Lets Python import modules of the current folder, such as scorers; those that are installed come first."""
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)


def refuse_ignored(options: Mapping[str, Any], reason: str) -> None:
    """Raises for an option that is given, but would be ignored.

    Args:
        options: by name, whether that is so.
        reason: why it has no effect.
    """
    for name, is_ignored in options.items():
        if is_ignored:
            raise typer.BadParameter(f"{name} has no effect: {reason}")


def check_speed(gpu: str | None, tflops: float | None, *, dry_run: bool) -> None:
    """Refuses the speed of a GPU where nothing is counted, and two of them."""
    refuse_ignored({"--tflops": tflops and not dry_run, "--gpu": gpu and not dry_run}, "it is for --dry-run")
    refuse_ignored({"--gpu": gpu and tflops}, "--tflops says how fast it is")


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
