"""Commands that take a pruning elsewhere: another checkpoint, another plan, the Hub."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ldpruner.cli import options as opt
from ldpruner.cli import parsing
from ldpruner.cli.answer import Answer, settings
from ldpruner.cli.console import Table, terminal

if TYPE_CHECKING:
    from ldpruner.operators.discovery import Removal
    from ldpruner.pruning.applying import Application
    from ldpruner.publishing.hub import Publication
    from ldpruner.selection.difference import ExtraRemoval, PlanDifference

PLAN = Annotated[Path, typer.Argument(help="A plan.json, or a folder that holds one.")]
OUT = Annotated[Path, typer.Option("--out", help="The folder of the pruned pipeline.")]
REPO = Annotated[str, typer.Option("--repo", help="The repository on the Hub: owner/name, or a name of your own.")]
REVISION = Annotated[str | None, typer.Option(help="The branch of the repository; it is made. Default: main.")]
PRIVATE = Annotated[bool, typer.Option("--private", help="Make the repository private, where it is new.")]
BASE_MODEL = Annotated[
    str | None, typer.Option(help="The Hub id of the original. Default: where the run folder's model came from.")
]
DRY_RUN = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Write to a folder what would be uploaded; upload nothing.", rich_help_panel=opt.OUTPUT
    ),
]
PUBLISHED = Annotated[
    Path | None, typer.Option("--out", help="With --dry-run: which folder. Default: hub/ in the run folder.")
]


def apply(
    plan: PLAN,
    model: opt.MODEL,
    out: OUT,
    component: opt.COMPONENT = None,
    pipeline_arg: opt.PIPELINE_ARG = None,
    device: opt.DEVICE = None,
    dtype: opt.DTYPE = None,
    dry_run: opt.DRY_RUN = False,
) -> Answer:
    """Prune another checkpoint, or a variant of the same architecture, by a plan.

    --dry-run checks the plan on the model's configuration alone. --pipeline-arg gives what a variant's call needs,
    such as image=first.png; without it, whole blocks of a pipeline that cannot be called keep stand-ins.

    Example: ldpruner apply runs/demo/plan.json zoo:satellite --out pruned
    """
    from ldpruner.pipelines.probe import Probe
    from ldpruner.pruning.applying import apply_plan, preview_plan
    from ldpruner.selection.plan import Plan

    read = Plan.read(plan)
    if dry_run:
        return application_answer(preview_plan(read, model, out, component=component), is_saved=False)
    probe = Probe(samples=1, call=parsing.call_arguments(pipeline_arg)) if pipeline_arg else None
    place = {"device": device, "dtype": dtype}
    applied = apply_plan(read, model, out, component=component, probe=probe, progress=terminal.progress, **place)
    return application_answer(applied, is_saved=True)


def diff(
    first: PLAN,
    second: PLAN,
    dry_run: opt.DRY_RUN = False,
) -> Answer:
    """Say what two plans remove differently.

    Example: ldpruner diff runs/a runs/b/plan.json
    """
    if dry_run:
        return settings(first=str(first), second=str(second))
    from ldpruner.selection.difference import compare_plans
    from ldpruner.selection.plan import Plan

    return difference_answer(compare_plans(Plan.read(first), Plan.read(second)), str(first), str(second))


def push(
    run: opt.RUN,
    repo: REPO,
    revision: REVISION = None,
    private: PRIVATE = False,
    base_model: BASE_MODEL = None,
    out: PUBLISHED = None,
    dry_run: DRY_RUN = False,
) -> Answer:
    """Publish the latest pipeline of a run folder on the Hub, with its plan and a model card.

    The token is that of `hf auth login`, or of the variable HF_TOKEN. Files of an earlier push that are no longer part
    of the pipeline are deleted, in the same commit.

    Example: ldpruner push --run runs/demo --repo owner/name --dry-run
    """
    if out is not None and not dry_run:
        raise typer.BadParameter("--out has no effect: it is for --dry-run")
    from ldpruner.publishing.hub import push as push_run
    from ldpruner.publishing.hub import write_publication

    if dry_run:
        written = write_publication(run, repo, out, revision=revision, base_model=base_model)
        return publication_answer(written)
    published = push_run(
        run, repo, revision=revision, private=private, base_model=base_model, progress=terminal.progress
    )
    return publication_answer(published)


def application_answer(application: "Application", *, is_saved: bool) -> Answer:
    """What a plan left of a pipeline, and where that is."""
    size = f"{100 * application.parameters / max(1, application.original_parameters):.0f} % of the parameters"
    removals, leave = ("removal", "leaves") if application.removals == 1 else ("removals", "leave")
    lines = [
        f"{application.removals} {removals} in {application.component} of {application.model} "
        f"({application.network}) {leave} {size}"
    ]
    if application.note:
        lines.append(application.note)
    model, folder = shlex.quote(application.model), shlex.quote(str(application.folder))
    data = application.model_dump(mode="json")
    if not is_saved:
        return Answer(data, lines, "the same without --dry-run")
    return Answer(data, [*lines, f"pruned pipeline: {application.folder}"], f"ldpruner bench {model} {folder}")


def difference_answer(difference: "PlanDifference", first: str, second: str) -> Answer:
    """What only one of two plans removes, what both remove differently, and what is left by either."""
    names = (first, second) if first != second else ("first", "second")
    count = len(difference.only_first), len(difference.only_second)
    headline = (
        f"{difference.common} removals are the same, {len(difference.changed)} differ, "
        f"{count[0]} only in the first plan, {count[1]} only in the second"
    )
    if difference.is_empty:
        headline = f"both plans make the same {difference.common} removals"
    parts: list[str | Table] = [headline, _summaries(difference)]
    for title, extra in zip(names, (difference.only_first, difference.only_second), strict=True):
        if extra:
            parts.append(_extra(f"only in {title}", extra))
    if difference.changed:
        rows = [
            (changed.first.operator, _modification(changed.first.removal), _modification(changed.second.removal))
            for changed in difference.changed
        ]
        parts.append(Table(("operator", "first", "second"), rows, "removed differently"))
    return Answer(difference.model_dump(mode="json"), parts)


def _summaries(difference: "PlanDifference") -> Table:
    """The plans in short, side by side."""
    plans = (difference.first, difference.second)
    rows = [
        (title, *(str(getattr(plan, title)) or "not known" for plan in plans))
        for title in ("network", "budget", "removals", "machine")
    ]
    predicted = [plan.predicted.model_dump() if plan.predicted else {} for plan in plans]
    for quantity in dict.fromkeys([*predicted[0], *predicted[1]]):
        left = [f"{each[quantity]:.3f}" if quantity in each else "not known" for each in predicted]
        rows.append((f"{quantity} left, predicted", *left))
    return Table(("", ">first", ">second"), rows)


def _extra(title: str, extra: Sequence["ExtraRemoval"]) -> Table:
    rows = [
        (
            removal.planned.operator,
            removal.planned.modification,
            f"{removal.planned.score:.4g}",
            ", ".join(removal.overlaps),
        )
        for removal in extra
    ]
    return Table(("operator", "modification", ">score ↓", "overlaps in the other"), rows, title)


def _modification(removal: "Removal") -> str:
    """A modification with what it reads and what goes along."""
    along = f" with {', '.join(removal.cascaded)}" if removal.cascaded else ""
    return f"{removal.modification} of {removal.source}{along}"


def publication_answer(publication: "Publication") -> Answer:
    """Where a pipeline was published, or what would be."""
    count = f"{len(publication.files)} files of {publication.pipeline}/"
    if publication.url is not None:
        lines = [f"pushed {count} to {publication.repo}: {publication.url}"]
    else:
        lines = [f"wrote {count} for {publication.repo} to {publication.folder}; nothing was uploaded"]
    return Answer(publication.model_dump(mode="json"), [*lines, *publication.notes])
