"""The latest pipeline of a run folder on the Hub, with its plan and a model card, in one commit."""

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from ldpruner.errors import LdPrunerError, PublishingError, one_line, shown
from ldpruner.files import locked
from ldpruner.progress import Progress, reported, unreported
from ldpruner.pruning.saving import replacing_folder
from ldpruner.publishing.card import LICENSE_UNKNOWN
from ldpruner.publishing.contents import Contents
from ldpruner.values import Value

REPOSITORY = re.compile(r"([\w-][\w.-]*/)?[\w-][\w.-]*", re.ASCII)
REFUSED = (401, 403)
LOGIN = "log in with 'hf auth login', or set HF_TOKEN to a token that may write there"
AGAIN = "push again: what has arrived is not sent twice"


class Publication(Value):
    """A pipeline on the Hub, or in the folder of a dry run.

    Attributes:
        repo: the repository, owner/name.
        pipeline: `pruned` or `recovered`: which pipeline of the run folder.
        files: all that is published.
        folder: where a dry run wrote it.
        url: of the commit.
        base_model: the Hub id of the original; None if it is not known.
        notes: what to know before it is used.
    """

    repo: str
    pipeline: str
    files: tuple[str, ...]
    folder: Path | None = None
    url: str | None = None
    base_model: str | None = None
    notes: tuple[str, ...] = ()


def push(
    run: Path | str,
    repo: str,
    *,
    revision: str | None = None,
    private: bool = False,
    base_model: str | None = None,
    progress: Progress = unreported,
) -> Publication:
    """Publishes the latest pipeline of a run folder on the Hub: the recovered one, else the pruned one.

    The repository is made if need be. Files of an earlier push are replaced, and deleted where they are no part of the
    pipeline any more. The token is that of `hf auth login`, or of the variable HF_TOKEN.

    Args:
        run: the run folder.
        repo: owner/name, or a name of your own.
        revision: a branch, which is made if need be; None is the main one.
        private: makes a new repository private.
        base_model: the Hub id of the original; None is where the run folder's model came from.

    Raises:
        PublishingError: the Hub refuses it, or cannot be reached.
        PipelineNotFound: there is no pruned pipeline.
        PlanMismatch: the plan of the run folder is not that of its pipeline.
    """
    _check_names(repo, base_model)
    with locked(run):
        contents = Contents(run, base_model)
        with _translated(repo), _without_bars(), tempfile.TemporaryDirectory() as temporary:
            api, place = huggingface_hub.HfApi(), Path(temporary)
            repo = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
            if revision is not None:
                api.create_branch(repo, branch=revision, exist_ok=True)
            files = contents.write(place, repo, revision, lambda source, target: target.symlink_to(source.resolve()))
            commit = reported(
                progress,
                f"uploading to {repo}",
                lambda: api.upload_folder(
                    repo_id=repo,
                    folder_path=place,
                    revision=revision,
                    commit_message=f"Upload a pruned {contents.pipeline_class.__name__}",
                    delete_patterns=[f"{folder.name}/*" for folder in place.iterdir() if folder.is_dir()],
                ),
            )
    return _publication(contents, repo, files, url=str(commit.commit_url))


def write_publication(
    run: Path | str,
    repo: str,
    folder: Path | str | None = None,
    *,
    revision: str | None = None,
    base_model: str | None = None,
) -> Publication:
    """Writes to a folder what `push` would upload. Nothing is uploaded.

    Args:
        folder: None is `hub/` in the run folder; only what ld-pruner has written there is replaced.

    Raises:
        PublishingError, PipelineNotFound, PlanMismatch: see `push`.
        StorageError: the folder cannot be written, or holds something else.
    """
    _check_names(repo, base_model)
    with locked(run):
        contents, target = Contents(run, base_model), Path(folder or Path(run) / "hub")
        with replacing_folder(target) as fresh:
            files = contents.write(fresh, repo, revision, shutil.copyfile)
    return _publication(contents, repo, files, folder=target)


def _check_names(repo: str, base_model: str | None) -> None:
    for name in filter(None, (repo, base_model)):
        if not REPOSITORY.fullmatch(name):
            raise PublishingError(f"{shown(name)} is no repository of the Hub; write it as owner/name")


@contextlib.contextmanager
def _translated(repo: str) -> Iterator[None]:
    """Turns the errors of huggingface_hub into one line."""
    try:
        yield
    except (LdPrunerError, MemoryError):
        raise
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        is_refused = status in REFUSED or "token" in type(error).__name__.lower()
        cause = f" ({one_line(error.__cause__)})" if error.__cause__ is not None else ""
        advice = LOGIN if is_refused else AGAIN
        raise PublishingError(f"cannot push to {repo!r}: {one_line(error)}{cause}; {advice}") from error


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Hides the progress bars of huggingface_hub inside a `with` block."""
    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _publication(
    contents: Contents, repo: str, files: tuple[str, ...], *, folder: Path | None = None, url: str | None = None
) -> Publication:
    origin = contents.origin
    notes = [] if origin.license else [LICENSE_UNKNOWN]
    if origin.hub_id is None:
        notes.append("The Hub id of the original is not known; name it with --base-model.")
    return Publication(
        repo=repo,
        pipeline=contents.latest.name,
        files=files,
        folder=folder,
        url=url,
        base_model=origin.hub_id,
        notes=tuple(notes),
    )
