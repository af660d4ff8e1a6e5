"""Commands that look at pipelines: what can be removed, and what they cost."""

from typing import Annotated

import typer
from rich.console import Console

from ldpruner.cli import parsing, tables
from ldpruner.cli.app import (
    CALL,
    COMPONENT,
    DEVICE,
    DRY,
    DTYPE,
    GUIDANCE,
    JSON,
    MODEL,
    PROMPTS,
    STEPS,
    app,
    open_pipeline,
    print_json,
)
from ldpruner.operators.discovery import denoiser_macs, operators_of
from ldpruner.operators.tracing import trace
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pipelines.probe import Probe
from ldpruner.profiling.benchmark import compare
from ldpruner.pruning.serialization import load_meta


@app.command()
def operators(
    model: MODEL, component: COMPONENT = None, call: CALL = None, as_json: JSON = False, dry_run: DRY = False
) -> None:
    """List what can be removed from a pipeline's denoiser. Needs its configuration files only.

    Example: ldpruner operators zoo:satellite
    """
    probe = Probe(samples=1, call=parsing.call_arguments(call))
    if dry_run:
        print_json({"model": model, "component": component, "call": probe.model_dump(mode="json")["call"]})
        return
    pipeline = load_meta(model)
    denoiser = find_denoiser(pipeline, component, probe.arguments(pipeline, [0]))
    flow = trace(denoiser)
    found = operators_of(denoiser, flow)
    totals = {"parameters": count_parameters(denoiser.module), "macs": denoiser_macs(denoiser, flow)}
    if as_json:
        rows = [
            {
                **one.model_dump(mode="json", by_alias=True, exclude={"component", "candidates"}),
                "modifications": one.modifications,
            }
            for one in found
        ]
        print_json({"pipeline": type(pipeline).__name__, "component": denoiser.component, **totals, "operators": rows})
    else:
        Console().print(tables.operators(found, totals))


@app.command("bench")
def bench_command(
    model: MODEL,
    other: Annotated[str | None, typer.Argument(help="A second pipeline, timed in turn with the first.")] = None,
    component: COMPONENT = None,
    steps: STEPS = 25,
    prompts: PROMPTS = None,
    guidance: GUIDANCE = None,
    call: CALL = None,
    rounds: Annotated[int, typer.Option(help="Timings of each.", min=2)] = 15,
    device: DEVICE = None,
    dtype: DTYPE = None,
    as_json: JSON = False,
    dry_run: DRY = False,
) -> None:
    """Measure a pipeline, or two in turn.

    Example: ldpruner bench zoo:satellite runs/demo/pruned
    """
    probe = parsing.probe_of(1, steps, 0, prompts, guidance, call)
    if dry_run:
        print_json({"pipelines": [model, other], "probe": probe.model_dump(mode="json"), "rounds": rounds})
        return
    pipelines = {name: open_pipeline(name, device, dtype) for name in (model, other) if name is not None}
    if other == model:
        pipelines = {
            f"{model} (first)": open_pipeline(model, device, dtype),
            f"{model} (second)": open_pipeline(model, device, dtype),
        }
    comparison = compare(pipelines, probe, component=component, rounds=rounds)
    if as_json:
        print_json(comparison.model_dump(mode="json"))
    else:
        Console().print(tables.comparison(comparison))
