"""Commands that measure pipelines: what can be removed, and what they cost."""

import shlex
from typing import Annotated, Any

import typer

from ldpruner.cli import parsing
from ldpruner.cli.answer import DRY_RUN, Answer, settings
from ldpruner.cli.console import terminal
from ldpruner.cli.options import (
    COMPONENT,
    DEVICE,
    DTYPE,
    GUIDANCE,
    IGNORE,
    MODEL,
    PIPELINE_ARG,
    PROMPTS,
    STEPS,
    TARGETS,
)

ORDERS = ("run", "parameters", "macs", "name")


def operators(
    model: MODEL,
    component: COMPONENT = None,
    ignore: IGNORE = None,
    targets: TARGETS = None,
    show_all: Annotated[bool, typer.Option("--all", help="Every operator, not the summary.")] = False,
    sort: Annotated[str, typer.Option(help=f"With --all, the order: {', '.join(ORDERS)}.")] = "run",
    pipeline_arg: PIPELINE_ARG = None,
    dry_run: DRY_RUN = False,
) -> Answer:
    """List what can be removed from a pipeline's denoiser. Needs its configuration files only.

    Example: ldpruner operators zoo:satellite --all --sort parameters
    """
    order = parsing.one_of(sort, ORDERS, "--sort")
    if dry_run:
        call = parsing.pairs(pipeline_arg or [], "--pipeline-arg")
        return settings(model=model, component=component, call=call, ignore=ignore or [], targets=targets or [])
    from ldpruner.cli import tables
    from ldpruner.operators.discovery import denoiser_macs, matching, operators_of
    from ldpruner.operators.tracing import trace
    from ldpruner.pipelines.denoiser import find_denoiser
    from ldpruner.pipelines.fingerprints import count_parameters
    from ldpruner.pipelines.probe import Probe
    from ldpruner.pruning.serialization import load_meta

    probe = Probe(samples=1, call=parsing.call_arguments(pipeline_arg))
    pipeline = load_meta(model)
    denoiser = find_denoiser(pipeline, component, probe.arguments(pipeline, [0]))
    flow = trace(denoiser)
    listed = matching(operators_of(denoiser, flow), ignore=ignore or (), targets=targets or ())
    totals = {"parameters": count_parameters(denoiser.module), "macs": denoiser_macs(denoiser, flow)}
    rows = [
        {
            **operator.model_dump(mode="json", by_alias=True, exclude={"component", "candidates"}),
            "modifications": operator.modifications,
        }
        for operator in listed
    ]
    name = type(pipeline).__name__
    return Answer(
        {"pipeline": name, "component": denoiser.component, **totals, "operators": rows},
        [
            tables.operators_headline(f"{name}.{denoiser.component}", listed, totals),
            *(
                [tables.operators(tables.ordered(listed, order), totals)]
                if show_all
                else [*tables.operators_summary(listed, totals), "every operator: add --all"]
            ),
        ],
        f"ldpruner score {shlex.quote(model)} --run runs/NAME",
    )


def bench(
    model: MODEL,
    other: Annotated[str | None, typer.Argument(help="A second pipeline, timed in turn with the first.")] = None,
    component: COMPONENT = None,
    steps: STEPS = 25,
    prompts: PROMPTS = None,
    guidance: GUIDANCE = None,
    pipeline_arg: PIPELINE_ARG = None,
    rounds: Annotated[int, typer.Option(help="Timings of each; fewer where they would take minutes.", min=2)] = 15,
    device: DEVICE = None,
    dtype: DTYPE = None,
    dry_run: DRY_RUN = False,
) -> Answer:
    """Measure a pipeline, or two in turn.

    Example: ldpruner bench zoo:satellite runs/demo/pruned
    """
    probe = parsing.probe_of(1, steps, 0, prompts, guidance, pipeline_arg)
    if dry_run:
        return settings(pipelines=[model, other], probe=probe.model_dump(mode="json"), rounds=rounds)
    from ldpruner.cli import tables
    from ldpruner.profiling.benchmark import compare
    from ldpruner.progress import reported
    from ldpruner.pruning.opening import open_pipeline

    def opened(name: str) -> Any:
        return reported(terminal.progress, f"opening {name}", lambda: open_pipeline(name, device, dtype))

    names = {model: model} if other is None else {model: model, other: other}
    if other == model:
        names = {f"{model} (first)": model, f"{model} (second)": model}
    pipelines = {label: opened(name) for label, name in names.items()}
    for pipeline in pipelines.values():
        probe.check(pipeline)
    comparison = compare(pipelines, probe, component=component, rounds=rounds, progress=terminal.progress)
    return Answer(
        comparison.model_dump(mode="json"),
        [tables.comparison_headline(comparison), tables.comparison(comparison)],
    )
