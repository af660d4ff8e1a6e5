"""Commands that measure pipelines: what can be removed, and what they cost."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ldpruner.cli import options as opt
from ldpruner.cli import parsing, tables
from ldpruner.cli.answer import Answer, settings
from ldpruner.cli.console import Table, terminal
from ldpruner.cli.prune import opened

if TYPE_CHECKING:
    from ldpruner.operators.discovery import Operator


def operators(
    model: opt.MODEL,
    component: opt.COMPONENT = None,
    granularity: opt.GRANULARITY = None,
    ignore: opt.IGNORE = None,
    targets: opt.TARGETS = None,
    show_all: Annotated[bool, typer.Option("--all", help="Every operator, not the summary.")] = False,
    sort: Annotated[Literal["run", "parameters", "macs", "name"], typer.Option(help="With --all, the order.")] = "run",
    pipeline_arg: opt.PIPELINE_ARG = None,
    dry_run: opt.DRY_RUN = False,
) -> Answer:
    """List what can be removed from a pipeline's denoiser. Needs its configuration files only.

    Example: ldpruner operators zoo:satellite --all --sort parameters
    """
    parsing.refuse_ignored({"--sort": sort != "run" and not show_all}, "it is for --all")
    if dry_run:
        shown: dict[str, Any] = {"call": parsing.pairs(pipeline_arg or [], "--pipeline-arg")}
        shown |= {"component": component, "granularity": granularity}
        return settings(model=model, **shown, ignore=ignore or [], targets=targets or [])
    from ldpruner.errors import WeightsNeeded
    from ldpruner.operators.choosing import choose_operators
    from ldpruner.operators.discovery import denoiser_macs
    from ldpruner.operators.tracing import trace
    from ldpruner.pipelines.denoiser import find_denoiser
    from ldpruner.pipelines.fingerprints import count_parameters
    from ldpruner.pipelines.probe import Probe
    from ldpruner.pruning.serialization import load_meta

    probe = Probe(samples=1, call=parsing.call_arguments(pipeline_arg))
    pipeline = load_meta(model)
    try:
        denoiser = find_denoiser(pipeline, component, probe.arguments(pipeline, [0]))
        flow = trace(denoiser)
    except WeightsNeeded:
        if not any(Path(model).glob("*/*.safetensors")):  # those of a Hub id are not downloaded unasked
            raise
        denoiser = find_denoiser(opened(model, None, None), component, probe.arguments(pipeline, [0]))
        flow = trace(denoiser)
    chosen = choose_operators(denoiser, flow, granularity=granularity, ignore=ignore or (), targets=targets or ())
    totals = {"parameters": count_parameters(denoiser.module), "macs": denoiser_macs(denoiser, flow)}
    name = type(pipeline).__name__
    return _operators_answer(
        name, denoiser.component, totals, tables.ordered(chosen, sort), show_all=show_all, model=model
    )


def _operators_answer(
    pipeline: str, component: str, totals: dict[str, int], listed: "list[Operator]", *, show_all: bool, model: str
) -> Answer:
    rows = [
        {
            **operator.model_dump(mode="json", by_alias=True, exclude={"component", "candidates"}),
            "modifications": operator.modifications,
            "granularity": operator.granularity,
        }
        for operator in listed
    ]
    parts: list[str | Table] = [tables.operators_headline(f"{pipeline}.{component}", listed, totals)]
    if show_all:
        parts.append(tables.operators(listed, totals))
    else:
        parts += [*tables.operators_summary(listed, totals), "every operator: add --all"]
    data = {"pipeline": pipeline, "component": component, **totals, "operators": rows}
    return Answer(data, parts, f"ldpruner score {shlex.quote(model)} --run runs/NAME")


def bench(
    model: opt.MODEL,
    other: Annotated[str | None, typer.Argument(help="A second pipeline, timed in turn with the first.")] = None,
    component: opt.COMPONENT = None,
    steps: opt.STEPS = 25,
    prompts: opt.PROMPTS = None,
    guidance: opt.GUIDANCE = None,
    height: opt.HEIGHT = None,
    width: opt.WIDTH = None,
    pipeline_arg: opt.PIPELINE_ARG = None,
    rounds: Annotated[int, typer.Option(help="Timings of each; fewer where they would take minutes.", min=2)] = 15,
    device: opt.DEVICE = None,
    dtype: opt.DTYPE = None,
    trust_programs: Annotated[
        bool, typer.Option("--trust-programs", help="Open a network that torch.export wrote; it can run code.")
    ] = False,
    dry_run: opt.DRY_RUN = False,
) -> Answer:
    """Measure a pipeline, or two in turn. Either may be exported.

    Example: ldpruner bench zoo:satellite runs/demo/pruned
    """
    probe = parsing.probe_of(prompts, guidance, pipeline_arg, samples=1, steps=steps, height=height, width=width)
    if dry_run:
        return settings(pipelines=[model, other], probe=probe.model_dump(mode="json"), rounds=rounds)
    from ldpruner.profiling.benchmark import compare

    names = {model: model} if other is None else {model: model, other: other}
    if other == model:
        names = {f"{model} (first)": model, f"{model} (second)": model}
    pipelines = {label: opened(name, device, dtype, trust_programs=trust_programs) for label, name in names.items()}
    for pipeline in pipelines.values():
        probe.check(pipeline)
    comparison = compare(pipelines, probe, component=component, rounds=rounds, progress=terminal.progress)
    parts: list[str | Table] = [tables.comparison_headline(comparison), tables.comparison(comparison)]
    return Answer(comparison.model_dump(mode="json"), parts)
