"""Whole runs as files, read and checked in every field."""

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from ldpruner.budget import Budget
from ldpruner.errors import LdPrunerError, StorageError, one_line
from ldpruner.evaluation.evaluate import MIN_SAMPLES
from ldpruner.finetuning import Training
from ldpruner.finetuning.trainer import SAMPLES
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.sampling import BATCH_SIZE
from ldpruner.scoring.importance import Metric
from ldpruner.selection.plan import Rule
from ldpruner.values import Value

Made = TypeVar("Made", bound=Value)

MARK = "recipe.json"  # in the run folder, once it is pruned
PRUNING = {"model", "probe", "metric", "rule", "budget", "component", "dtype"}  # what decides the plan


class RecipeError(LdPrunerError):
    """A recipe cannot be read, or one of its fields is wrong."""


class Draws(Value):
    """The probe of a recipe: the fields of `Probe`, but a file of prompts is read only when the recipe runs."""

    samples: int = 16
    steps: int = 25
    seed: int = 0
    prompts: Path | tuple[str, ...] | None = None
    guidance: float | None = None
    call: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> "Draws":
        self.without_file()
        return self

    def probe(self) -> Probe:
        """The probe, its prompts read.

        Raises:
            ProbeError: they cannot be.
        """
        return Probe(**dict(self))

    def without_file(self) -> Probe:
        """The probe as far as the recipe alone tells it: without the prompts of a file."""
        prompts = None if isinstance(self.prompts, Path) else self.prompts
        return Probe(**{**dict(self), "prompts": prompts})


class Judging(Value):
    """How the recovered pipeline is set beside the original (see `evaluate`).

    Attributes:
        samples: of each pipeline.
        batch: samples drawn at once; 16, or 8 where they are decoded, if None.
        features, clip: the networks that look at them.
        data: a folder that samples are compared with; None compares them with the original's.
        prompts: others than the probe's.
    """

    samples: int = Field(default=64, ge=MIN_SAMPLES)
    batch: int | None = Field(default=None, ge=1)
    features: str = "latents"
    clip: str | None = None
    data: Path | None = None
    prompts: Path | tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> "Judging":
        if self.data is not None and self.features == "latents":
            raise ValueError("files have no latents; with data, choose features: inception, a folder or a Hub id")
        return self


class Recipe(Value):
    """A whole run: score, select, prune, finetune, evaluate.

    Attributes:
        model: a folder, a Hub id, or zoo:NAME.
        run: the run folder.
        probe: how latents are drawn for the scores.
        component: which network, where there are several denoisers.
        metric, rule, budget: what is removed.
        exhaustive: score everything on all samples; otherwise the costs of scoring are the most that it can take.
        batch: samples drawn at once.
        training: how the pruned denoiser is trained.
        data: a folder to learn from; None for `examples` samples of the original.
        evaluation: how the result is judged.
        device, dtype: where everything runs, and the precision of the weights.
    """

    model: str
    run: Path
    probe: Draws = Draws()
    component: str | None = None
    metric: Metric = "mean_std"
    rule: Rule = "knapsack"
    budget: Budget
    exhaustive: bool = False
    batch: int = Field(default=BATCH_SIZE, ge=1)
    training: Training = Training()
    data: Path | None = None
    examples: int = Field(default=SAMPLES, ge=2)
    evaluation: Judging = Judging()
    device: str | None = None
    dtype: Literal["float32", "float16", "bfloat16"] | None = None

    @property
    def missing(self) -> dict[str, Path]:
        """The files and folders that are not there, by field."""
        named = {
            "probe.prompts": self.probe.prompts,
            "data": self.data,
            "evaluation.data": self.evaluation.data,
            "evaluation.prompts": self.evaluation.prompts,
        }
        return {field: path for field, path in named.items() if isinstance(path, Path) and not path.exists()}

    def check_files(self) -> None:
        """Finds out before the first hour, not after the hundredth.

        Raises:
            RecipeError: a file or a folder is missing.
        """
        for field, path in self.missing.items():
            raise RecipeError(
                f"{field}={str(path)!r}: no such file or folder; put it there (relative to the working directory)"
            )

    def was_pruned(self) -> bool:
        """Whether the run folder holds what this recipe prunes.

        A latency is measured, and a second measurement may choose another plan, for which a training that has begun
        would be lost: so what is pruned stays.

        Raises:
            RecipeError: it holds what another recipe pruned.
        """
        try:
            known = json.loads((self.run / MARK).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        for field, value in self._pruning().items():
            if known.get(field) != value:
                raise RecipeError(
                    f"{self.run} was pruned with {field}={known.get(field)!r}, the recipe has {value!r}; "
                    "name another run folder"
                )
        return True

    def mark_pruned(self) -> None:
        """Writes into the run folder that this recipe's pruning is done."""
        path = self.run / MARK
        try:
            path.write_text(json.dumps(self._pruning(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error

    def _pruning(self) -> dict[str, Any]:
        return self.model_dump(mode="json", include=PRUNING)


def read_recipe(path: Path | str) -> Recipe:
    """Reads a recipe from a YAML file; its paths are relative to the working directory.

    Raises:
        RecipeError: it cannot be read, or a field is unknown or wrong.
    """
    document = _document(Path(path))
    kinds: dict[str, type[Value]] = {"probe": Draws, "budget": Budget, "training": Training, "evaluation": Judging}
    try:
        parts = {name: _made(kind, document[name], f"{name}.") for name, kind in kinds.items() if name in document}
        return _made(Recipe, {**document, **parts}, "")
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def _document(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read recipe {str(path)!r}: {one_line(error)}; give a YAML file") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not YAML: {one_line(error)}; mend it there") from error
    if not isinstance(found, dict):
        raise RecipeError(f"{path} holds {type(found).__name__}, no fields; write each as 'name: value'")
    return {str(name): value for name, value in found.items()}


def _made(kind: type[Made], given: Any, place: str) -> Made:
    """A value of some fields, with what is wrong told by the path of the field."""
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise RecipeError(
            f"{place[:-1]}={given!r}: write its fields below it, indented: {', '.join(kind.model_fields)}"
        )
    for name, value in given.items():
        if name not in kind.model_fields:
            near = get_close_matches(str(name), kind.model_fields, n=3) or kind.model_fields
            raise RecipeError(f"no field {place}{name} (={value!r}); use one of {', '.join(near)}")
    try:
        return kind(**given)
    except (ValidationError, LdPrunerError) as error:
        raise RecipeError(_problem(error, place)) from error


def _problem(error: ValidationError | LdPrunerError, place: str) -> str:
    """The first fault of a value: the path of the field, the value seen, what it should be."""
    cause = error if isinstance(error, ValidationError) else error.__cause__
    if not isinstance(cause, ValidationError):
        return str(error).replace(f"{place[:-1]} ", place, 1)
    problem = cause.errors()[0]
    field = f"{place}{problem['loc'][0]}" if problem["loc"] else place[:-1]
    if problem["type"] == "missing":
        return f"no field {field}; add it"
    return f"{field}={problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}"
