"""What all commands share: the application, its options, opening a pipeline, a run's facts, JSON out."""

import contextlib
import functools
import json
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import torch
import typer
from diffusers import DiffusionPipeline
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ldpruner.cli import parsing
from ldpruner.errors import RunStoreError, one_line
from ldpruner.pruning.serialization import load
from ldpruner.scoring.importance import METRICS
from ldpruner.scoring.results import Scores
from ldpruner.scoring.store import RunStore
from ldpruner.scoring.worker import Executor
from ldpruner.selection.plan import RULES

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="Prune latent diffusion models."
)
errors = Console(stderr=True, highlight=False)
Item = TypeVar("Item", covariant=True)


class Long(Protocol[Item]):
    """Work with a length."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Item]: ...


MODEL = Annotated[str, typer.Argument(help="A folder, a Hub id, or zoo:NAME.")]
RUN = Annotated[Path, typer.Option("--run", help="The run folder; the same command again resumes.")]
JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object; everything else goes to standard error.")]
DRY = Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")]
COMPONENT = Annotated[str | None, typer.Option(help="Which network, where there are several denoisers.")]
SAMPLES = Annotated[int, typer.Option(help="Latents to draw for each modification.")]
STEPS = Annotated[int, typer.Option(help="Denoising steps of each.")]
SEED = Annotated[int, typer.Option(help="From which each sample's own seed is made.")]
PROMPTS = Annotated[Path | None, typer.Option(help="A text file with a prompt on each line.")]
GUIDANCE = Annotated[float | None, typer.Option(help="Scale of classifier-free guidance.")]
CALL = Annotated[list[str] | None, typer.Option(help="A further argument of the pipeline's call: key=value.")]
BATCH_OPTION = Annotated[int, typer.Option("--batch", help="Samples drawn at once.", min=1)]
METRIC = Annotated[str, typer.Option(help=f"The score: {', '.join(METRICS)}.")]
BUDGET = Annotated[list[str], typer.Option(help="What may be left, such as latency=0.65; repeatable.")]
RACED = Annotated[
    list[str] | None,
    typer.Option("--budget", help="For what to be sure; default: latency=0.65, 0.5 and 0.35."),
]
EXECUTOR = Annotated[str, typer.Option(help="What draws: local, this process; ray, several.")]
RAY_ADDRESS = Annotated[str | None, typer.Option(help="A Ray cluster to draw on. Default: workers on this machine.")]
EXHAUSTIVE = Annotated[bool, typer.Option("--exhaustive", help="Score everything on all samples, as in the paper.")]
RULE = Annotated[str, typer.Option(help=f"How to choose: {', '.join(RULES)}.")]
DTYPE = Annotated[str | None, typer.Option(help="Precision of the weights, such as float16. Default: float32.")]
DEVICE = Annotated[str | None, typer.Option(help="Where to run: cpu, cuda, mps. Default: cuda if there is one.")]


def open_pipeline(model: str | Path, device: str | None, dtype: str | None) -> DiffusionPipeline:
    """A pipeline where it shall run."""
    pipeline = load(model, torch_dtype=parsing.precision(dtype))
    rank = os.environ.get("LOCAL_RANK", "0")  # which process of a launcher this is
    place = device or (f"cuda:{rank}" if torch.cuda.is_available() else "cpu")
    try:
        return pipeline if place == "cpu" else pipeline.to(place)
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(f"device {place!r} cannot be used: {one_line(error)}") from error


def resolved(model: str | Path) -> str:
    """A model's name that means the same from any folder."""
    return str(Path(model).resolve()) if Path(model).exists() else str(model)


@contextlib.contextmanager
def executor_of(
    name: str, address: str | None, model: str | Path, device: str | None, dtype: str | None
) -> Iterator[Executor | None]:
    """What draws for scores: workers that each open the pipeline, or None for this process."""
    if parsing.one_of(name, ("local", "ray"), "--executor") == "local":
        if address is not None:
            raise typer.BadParameter("--ray-address is for --executor ray")
        yield None
        return
    if find_spec("ray") is None:
        raise typer.BadParameter("--executor ray needs Ray: pip install 'ld-pruner[ray]'")
    from ldpruner.scoring.ray import RayExecutor  # an extra

    opener = functools.partial(open_pipeline, resolved(model), device, dtype)
    with RayExecutor(opener, address) as executor:
        yield executor


def progress(work: Long[Item], what: str) -> Iterator[Item]:
    """The work's items, with a bar on standard error; its length may grow on the way."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors) as bar:
        task = bar.add_task(what, total=len(work))
        for item in work:
            bar.update(task, advance=1, total=len(work))
            yield item


def fact(run: Path, name: str) -> Any:
    """What a run folder knows by a name."""
    if not (run / "run.sqlite").exists():
        raise RunStoreError(f"no run at {run}; make one with 'ldpruner score MODEL --run {run}'")
    with RunStore(run) as store:
        value = store.fact(name)
    if value is None:
        raise RunStoreError(f"the run at {run} has no {name} yet; finish it with 'ldpruner score MODEL --run {run}'")
    return value


def known_scores(run: Path) -> Scores:
    """The scores of a run folder."""
    try:
        return Scores.model_validate(fact(run, "scores"))
    except ValidationError as error:
        raise RunStoreError(f"the scores of {run} are not readable: {one_line(error)}; score again") from error


def print_json(value: Any) -> None:
    """One JSON object to standard output."""
    typer.echo(json.dumps(value))
