"""What a run folder holds, and how each part of it is read and written."""

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from diffusers import DiffusionPipeline
from pydantic import TypeAdapter, ValidationError

from ldpruner.errors import PipelineNotFound, RunStoreError, one_line
from ldpruner.evaluation.evaluate import Evaluation
from ldpruner.evaluation.gallery import read_gallery
from ldpruner.files import locked, write_atomic
from ldpruner.finetuning.settings import History
from ldpruner.profiling.benchmark import Comparison
from ldpruner.progress import Progress, reported
from ldpruner.pruning.opening import open_pipeline
from ldpruner.pruning.saving import check_replaceable
from ldpruner.scoring.results import Scores
from ldpruner.scoring.store import RunStore
from ldpruner.selection.plan import PLAN_FILE, Plan
from ldpruner.values import Value

Read = TypeVar("Read", bound=Value)
JSON_OBJECT = TypeAdapter(dict[str, Any])
RATIO = "latency_ratio"
CLOSE = 0.002  # two shares of parameters are of one plan

logger = logging.getLogger(__name__)


class Alternative(Value):
    """Something else that makes the original faster, evaluated like a pruned pipeline.

    Attributes:
        name: what it is.
        evaluation: of it, beside the original.
    """

    name: str
    evaluation: Evaluation


class Alternatives(Value):
    """The alternatives to a run's pipeline, as its folder keeps them."""

    alternatives: tuple[Alternative, ...]


class RunFolder:
    """A run folder: `run.sqlite`, `plan.json`, `pruned/`, `recovered/`, `samples/`, `comparison.json`,
    `finetuning.json`, `evaluation.json`, `alternatives.json`.

    Every file in it is written whole or not at all.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.pruned = self.path / "pruned"
        self.recovered = self.path / "recovered"
        self.lora = self.path / "lora"
        self.samples = self.path / "samples"
        self.plan_file = self.path / PLAN_FILE
        self.evaluation_file = self.path / "evaluation.json"
        self.comparison_file = self.path / "comparison.json"
        self.history_file = self.path / "finetuning.json"
        self.alternatives_file = self.path / "alternatives.json"

    def fact(self, name: str) -> Any:
        """A fact of the run's store; a RunStoreError if there is no run, or it does not have the fact yet."""
        if not (self.path / "run.sqlite").exists():
            raise RunStoreError(f"no run at {self.path}; make one with 'ldpruner score MODEL --run {self.path}'")
        with RunStore(self.path) as store:
            value = store.fact(name)
        if value is None:
            raise RunStoreError(
                f"the run at {self.path} has no {name} yet; finish it with 'ldpruner score MODEL --run {self.path}'"
            )
        return value

    def model(self) -> str:
        """The name of the original, for `open_pipeline`; a RunStoreError if the run was made without one."""
        return str(self.fact("model"))

    def scores(self) -> Scores:
        """The scores of the run; a RunStoreError if it has none, or they cannot be read."""
        try:
            return Scores.model_validate(self.fact("scores"))
        except ValidationError as error:
            raise RunStoreError(
                f"the scores of {self.path} are not readable: {one_line(error)}; score again"
            ) from error

    def plan(self) -> Plan:
        """The plan of the run; a PlanMismatch if there is none, or it cannot be read."""
        return Plan.read(self.plan_file)

    def check_pruned(self) -> None:
        """Raises PipelineNotFound if there is no pruned pipeline."""
        if not self.pruned.is_dir():
            raise PipelineNotFound(
                f"no pruned pipeline in {self.path}; make one with 'ldpruner prune --run {self.path}'"
            )

    @contextlib.contextmanager
    def writing(self, pipeline: Path) -> Iterator[None]:
        """Holds the run folder until a pipeline is saved there; what could not be replaced is refused before the work.

        Raises:
            RunFolderBusy: another process is writing into the run folder.
            StorageError: `pipeline` is a link, or holds what ld-pruner did not write.
        """
        with locked(self.path):
            check_replaceable(pipeline)
            yield

    def latest(self) -> Path:
        """The recovered pipeline, if it was made from the pruned one that is there now; else the pruned one."""
        is_current = self.recovered.is_dir() and _configurations(self.recovered) == _configurations(self.pruned)
        return self.recovered if is_current else self.pruned

    def open_original(
        self, original: DiffusionPipeline | None, device: str | None, dtype: str | None, progress: Progress
    ) -> DiffusionPipeline:
        """The original: the one that is given, or else the model's, opened (see `open_pipeline`)."""
        if original is not None:
            return original
        return reported(progress, "opening the original", lambda: open_pipeline(self.model(), device, dtype))

    def write_history(self, history: History) -> None:
        """Keeps how the latest finetuning went."""
        write_atomic(self.history_file, history.model_dump_json(indent=2) + "\n")

    def history(self) -> History | None:
        """How the latest finetuning went; None if there was none."""
        return _read(self.history_file, History, "finetune")

    def write_evaluation(self, evaluation: Evaluation) -> None:
        """Keeps an evaluation of the latest pipeline, with the name of that pipeline's folder."""
        content = {"pipeline": self.latest().name, **evaluation.model_dump(mode="json")}
        write_atomic(self.evaluation_file, json.dumps(content, indent=2) + "\n")

    def evaluation(self) -> tuple[str, Evaluation] | None:
        """The evaluation, and whether it is of the `pruned` or the `recovered` pipeline.

        None if there is none, or if it is of another plan than the one that is there now.
        """
        if not self.evaluation_file.exists():
            return None
        try:
            content = JSON_OBJECT.validate_json(self.evaluation_file.read_bytes())
            stage, evaluation = str(content.pop("pipeline", "pruned")), Evaluation.model_validate(content)
        except (OSError, ValueError) as error:
            raise RunStoreError(f"cannot read {self.evaluation_file}: {one_line(error)}; evaluate again") from error
        sizes = [measure for measure in evaluation.metrics if measure.metric == "parameters"]
        if not all(self._is_of_plan(size.original, size.pruned) for size in sizes):
            logger.warning("%s is of another plan and left out; evaluate again", self.evaluation_file)
            return None
        return stage, evaluation

    def write_comparison(self, comparison: Comparison) -> None:
        """Keeps what the original and the pruned pipeline cost, as `run` has timed them."""
        write_atomic(self.comparison_file, comparison.model_dump_json(indent=2) + "\n")

    def comparison(self) -> Comparison | None:
        """What the original and the pruned pipeline cost; None if it was not timed, or was pruned by another plan."""
        comparison = _read(self.comparison_file, Comparison, "run")
        if comparison is not None and not self._is_of_plan(*(cost.parameters for cost in comparison.pipelines)):
            logger.warning("%s and samples are of another plan and left out; run again", self.comparison_file)
            return None
        return comparison

    @property
    def has_samples(self) -> bool:
        """Whether there are samples, and none of a pipeline that was pruned by another plan."""
        is_current = not self.comparison_file.exists() or self.comparison() is not None
        return is_current and read_gallery(self.samples) is not None

    def _is_of_plan(self, original: float | None, pruned: float | None) -> bool:
        """Whether a measured pair of sizes is that of the plan that is there now."""
        predicted = self.plan().predicted if self.plan_file.exists() else None
        if predicted is None or not original or pruned is None:
            return True
        return abs(pruned / original - predicted.parameters) <= CLOSE

    def latency_ratio(self) -> float:
        """The measured latency of the pruned pipeline over the original's; a RunStoreError if it was not timed."""
        comparison = self.comparison()
        if comparison is not None:
            return comparison.ratio
        _, evaluation = self.evaluation() or (None, None)
        ratios = [measure.pruned for measure in (evaluation.metrics if evaluation else ()) if measure.metric == RATIO]
        if not ratios or ratios[0] is None:
            raise RunStoreError(
                f"the pipeline of {self.path} was not timed; do it with 'ldpruner evaluate --run {self.path}'"
            )
        return float(ratios[0])

    def write_alternatives(self, alternatives: Sequence[Alternative]) -> None:
        """Keeps what else was evaluated beside the original."""
        content = Alternatives(alternatives=tuple(alternatives))
        write_atomic(self.alternatives_file, content.model_dump_json(indent=2) + "\n")

    def alternatives(self) -> tuple[Alternative, ...]:
        """What else was evaluated beside the original; empty if nothing was."""
        content = _read(self.alternatives_file, Alternatives, "evaluate --alternatives")
        return content.alternatives if content is not None else ()


def _read(path: Path, model: type[Read], command: str) -> Read | None:
    """A value that a command wrote; None if there is none."""
    if not path.exists():
        return None
    try:
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunStoreError(f"cannot read {path}: {one_line(error)}; {command} again") from error


def _configurations(folder: Path) -> dict[str, Any]:
    """The configurations of a pipeline's components, without what diffusers notes about their origin."""
    configurations = {}
    for path in sorted(folder.glob("*/config.json")):
        try:
            fields = JSON_OBJECT.validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise PipelineNotFound(f"cannot read {path}: {one_line(error)}; prune again") from error
        configurations[path.parent.name] = {name: fields[name] for name in fields if not name.startswith("_")}
    return configurations
