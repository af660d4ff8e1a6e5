"""What of a run folder is published: its latest pipeline, the plan, samples and a model card."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from ldpruner.errors import PlanMismatch, RunStoreError
from ldpruner.evaluation.gallery import PICTURE, SHEET, SOUND, VIDEO, read_gallery
from ldpruner.files import write_atomic
from ldpruner.operators.names import overlap
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pipelines.running import networks
from ldpruner.pruning.serialization import AUTO_MAP, load_meta
from ldpruner.publishing.card import Card
from ldpruner.publishing.origin import Origin, find_origin
from ldpruner.publishing.task import pipeline_tag
from ldpruner.run_folder import CLOSE, RunFolder
from ldpruner.selection.plan import PLAN_FILE, Plan
from ldpruner.stand_ins import REMOVED, old_name

CARD_FILE = "README.md"

logger = logging.getLogger(__name__)


class Contents:
    """What of a run folder is published; all of it is checked before anything is written."""

    def __init__(self, run: Path | str, base_model: str | None) -> None:
        self.folder = RunFolder(run)
        self.folder.check_pruned()
        self.latest, self.plan = self.folder.latest(), self.folder.plan()
        pipeline = load_meta(self.latest)
        self.pipeline_class, parts = type(pipeline), networks(pipeline).values()
        self.needs_code = any(AUTO_MAP in getattr(part, "config", {}) for part in parts)
        self.component, self.network = _find_pruned(pipeline, self.plan)
        self.parameters = count_parameters(self.network)
        _check_plan(self.network, self.plan, self.latest)
        self.origin = _origin(self.folder, base_model)

    def write(
        self, place: Path, repo: str, revision: str | None, copy: Callable[[Path, Path], object]
    ) -> tuple[str, ...]:
        """Writes all files into an empty folder; `copy` puts a file in a place without changing it."""
        for source in sorted(self.latest.rglob("*")):
            name = source.relative_to(self.latest)
            if source.is_file() and not _is_hidden(name):
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                _put(source, place / name, copy)
        card = self._card(repo, revision)
        for sample in card.samples:
            (place / "samples").mkdir(exist_ok=True)
            copy(self.folder.samples / sample, place / "samples" / sample)
        for legal in self.origin.legal_files:
            copy(legal, place / legal.name)
        self.plan.write(place / PLAN_FILE)
        write_atomic(place / CARD_FILE, card.text())
        written = [path.relative_to(place) for path in sorted(place.rglob("*")) if path.is_file()]
        return tuple(name.as_posix() for name in written if not _is_hidden(name))

    def _card(self, repo: str, revision: str | None) -> Card:
        evaluated, evaluation = self.folder.evaluation() or ("pruned", None)
        comparison = self.folder.comparison()
        samples, rows, prompts = _samples(self.folder)
        return Card(
            repo=repo,
            revision=revision,
            pipeline=self.pipeline_class.__name__,
            component=self.component,
            network=getattr(type(self.network), "unpruned_class", type(self.network)).__name__,
            parameters=self.parameters,
            task=pipeline_tag(self.pipeline_class),
            origin=self.origin,
            plan=self.plan,
            is_finetuned=self.latest == self.folder.recovered,
            needs_code=self.needs_code,
            evaluation=evaluation,
            evaluated=evaluated,
            comparison=comparison,
            samples=samples,
            rows=rows,
            prompts=prompts,
        )


def _origin(folder: RunFolder, base_model: str | None) -> Origin:
    try:
        model = folder.model()
    except RunStoreError as error:
        if base_model is None:
            raise RunStoreError(f"{error}; or name the original with --base-model") from error
        model = base_model
    return find_origin(model, base_model)


def _find_pruned(pipeline: DiffusionPipeline, plan: Plan) -> tuple[str, nn.Module]:
    """The pruned network of a pipeline: the plan's component, else the one whose configuration lists removals."""
    parts = networks(pipeline)
    if plan.component is not None and plan.component in parts:
        return plan.component, parts[plan.component]
    for name, network in parts.items():
        if _removed_names(network):
            return name, network
    raise PlanMismatch(f"no network of {type(pipeline).__name__} is pruned; prune again")


def _removed_names(network: nn.Module) -> list[str]:
    """The operators that a network's configuration lists as removed, by their names in the original."""
    config: Any = getattr(network, "config", {})
    moved = list(config.get(REMOVED) or ())
    operators = [removal["operator"] for removal in config.get("removals") or ()]
    return [*moved, *(old_name(operator, moved) for operator in operators)]


def _check_plan(network: nn.Module, plan: Plan, latest: Path) -> None:
    """Checks that a network was pruned by a plan.

    Raises:
        PlanMismatch: it still has an operator of the plan, or another size than the plan says.
    """
    removed = _removed_names(network)
    operators = [planned.operator for planned in plan.removed]
    kept = [operator for operator in operators if not any(overlap(operator, name) for name in removed)]
    advice = "prune again, so that the plan is that of the pipeline"
    if kept:
        raise PlanMismatch(f"the plan removes {kept[0]!r}, but {latest} has it; {advice}")
    if plan.predicted is None or plan.architecture is None:
        return
    parameters, original = count_parameters(network), plan.architecture.parameters
    if abs(parameters / original - plan.predicted.parameters) > CLOSE:
        expected = round(original * plan.predicted.parameters)
        raise PlanMismatch(f"the plan leaves {expected:,} parameters, but {latest} has {parameters:,}; {advice}")


def _is_hidden(name: Path) -> bool:
    """Whether a file is hidden, such as the marker and the lock of `save`."""
    return any(part.startswith(".") for part in name.parts)


def _put(source: Path, target: Path, copy: Callable[[Path, Path], object]) -> None:
    """Puts a file in its place; a configuration without the local folder that diffusers notes in it."""
    if source.suffix == ".json" and (content := _without_local_names(source)) is not None:
        target.write_text(content, encoding="utf-8")
    else:
        copy(source, target)


def _without_local_names(path: Path) -> str | None:
    """A configuration that names an absolute path as its origin, without that name; None if it names none."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    name = config.get("_name_or_path") if isinstance(config, dict) else None
    if not isinstance(name, str) or not Path(name).is_absolute():
        return None
    return json.dumps({key: config[key] for key in config if key != "_name_or_path"}, indent=2) + "\n"


def _samples(run: RunFolder) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The sheet and the sounds of a run folder, the pipelines on them, and their prompts."""
    folder = run.samples
    try:
        gallery = read_gallery(folder) if run.has_samples else None
    except RunStoreError:
        gallery = None
    if gallery is None:
        return (), (), ()
    sheets = [name for name in (SHEET + PICTURE, SHEET + VIDEO) if (folder / name).exists()]
    sounds = [path.name for files in gallery.files(folder) for path in files.values() if path.suffix == SOUND]
    prompts = tuple(str(sample["prompt"]) for sample in gallery.samples if "prompt" in sample)
    return (*sheets, *sounds), gallery.rows, prompts
