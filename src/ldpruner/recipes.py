"""Whole runs as files: read, checked in every field, counted, and carried out."""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import yaml
from diffusers import DiffusionPipeline
from pydantic import Field, model_validator

from ldpruner.budget import Budget
from ldpruner.errors import DataError, LdPrunerError, ProbeError, one_line, shown
from ldpruner.estimate import (
    TFLOPS,
    Denoising,
    Stage,
    count_denoising,
    evaluation_stage,
    finetuning_stage,
    scoring_stage,
)
from ldpruner.evaluation.evaluate import Evaluation
from ldpruner.evaluation.media import read_picture
from ldpruner.evaluation.scorers import find_scorers
from ldpruner.evaluation.settings import EvaluationSettings
from ldpruner.files import locked, write_atomic
from ldpruner.finetuning.settings import History, Training
from ldpruner.finetuning.trainer import SAMPLES
from ldpruner.operators.discovery import Granularity
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.sampling import BATCH_SIZE
from ldpruner.progress import Progress, unreported
from ldpruner.pruning.opening import open_pipeline
from ldpruner.recovery import finetune_run, parse_goal
from ldpruner.run_folder import JSON_OBJECT
from ldpruner.scoring.importance import Metric
from ldpruner.selection.plan import Rule
from ldpruner.values import MAX_COUNT, Settings
from ldpruner.workflow import Outcome, evaluate_run, run

StageName: TypeAlias = Literal["prune", "finetune", "evaluate"]
STAGES: tuple[StageName, ...] = get_args(StageName)
MARK = "recipe.json"  # in the run folder, once it is pruned
OPERATORS = ("component", "granularity", "ignore", "targets")
CHOICES = (*OPERATORS, "metric", "rule", "native")  # of `run`, as it takes them
PRUNING = {"model", "probe", "prompts", "budget", "dtype", *CHOICES}
MAX_DEPTH = 20  # of a recipe's fields
MAX_NUMBER = 2**63


class RecipeError(LdPrunerError):
    """A recipe cannot be read, or one of its fields is wrong."""


class Recipe(Settings):
    """A whole run: score, select, prune, finetune, evaluate.

    Attributes:
        model: a folder, a Hub id, or zoo:NAME.
        run: the run folder.
        probe: which latents are compared for the scores; images of its call are files' paths.
        prompts: a file of prompts (see `read_prompts`), read when the recipe runs.
        component: which network, for pipelines with more than one denoiser.
        granularity, ignore, targets: which operators.
        metric, rule, native, budget: what is removed.
        exhaustive: scores everything on all samples.
        batch_size: samples at once.
        training: how the pruned denoiser is trained.
        data: a folder to learn from; None for `examples` samples of the original.
        until: how good is good enough (see `finetune_run`).
        evaluation: how the result is evaluated.
        device, dtype: where everything runs, and the precision of the weights.
    """

    noun = "recipe"
    error = RecipeError

    model: str
    run: Path
    probe: Probe = Probe()
    prompts: Path | None = None
    component: str | None = None
    granularity: Granularity | None = None
    ignore: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    metric: Metric = "mean_std"
    rule: Rule = "knapsack"
    native: bool = False
    budget: Budget
    exhaustive: bool = False
    batch_size: int = Field(default=BATCH_SIZE, ge=1, le=MAX_COUNT)
    training: Training = Training()
    data: Path | None = None
    until: str | None = None
    examples: int = Field(default=SAMPLES, ge=2, le=MAX_COUNT)
    evaluation: EvaluationSettings = EvaluationSettings()
    device: str | None = None
    dtype: Literal["float32", "float16", "bfloat16"] | None = None

    @model_validator(mode="after")
    def _refuse_what_is_ignored(self) -> "Recipe":
        if self.prompts is not None and self.probe.prompts is not None:
            raise RecipeError("recipe prompts and probe.prompts are given; choose one")
        if self.until is not None:
            parse_goal(self.until)
        if self.data is not None and self.examples != SAMPLES:
            raise RecipeError(f"recipe examples={self.examples} has no effect with data; leave it out")
        return self

    @property
    def missing(self) -> dict[str, Path]:
        """The files and folders that are not there, by field."""
        named = {
            "prompts": self.prompts,
            "data": self.data,
            "evaluation.data": self.evaluation.data,
            "evaluation.prompts": self.evaluation.prompts,
        }
        return {field: path for field, path in named.items() if path is not None and not path.exists()}

    def resolved_probe(self, samples: int | None = None, prompts: Path | None = None) -> Probe:
        """The probe with its files read (prompts, images of the call), or with other samples or another file.

        Raises:
            ProbeError: the prompts or an image cannot be read.
        """
        return self.probe.replace(
            samples=samples or self.probe.samples,
            prompts=prompts or self.prompts or self.probe.prompts,
            call=opened_images(self.probe.call),
        )

    def was_pruned(self) -> bool:
        """Whether the run folder holds what this recipe prunes.

        Raises:
            RecipeError: it holds what another recipe pruned.
        """
        try:
            marked = JSON_OBJECT.validate_json((self.run / MARK).read_bytes())
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            problem = f"{self.run / MARK} does not say what was pruned: {one_line(error)}"
            raise RecipeError(f"{problem}; delete it to prune again") from error
        for field, value in self._pruning().items():
            if marked.get(field) != value:
                raise RecipeError(
                    f"{self.run} was pruned with {field}={marked.get(field)!r}, the recipe has {value!r}; "
                    "name another run folder"
                )
        return True

    def mark_pruned(self) -> None:
        """Writes into the run folder that this recipe's pruning is done."""
        write_atomic(self.run / MARK, json.dumps(self._pruning(), indent=2) + "\n")

    def _pruning(self) -> dict[str, Any]:
        return self.model_dump(mode="json", include=PRUNING)


class RecipeEstimate(Denoising):
    """What a recipe takes, by arithmetic alone.

    Attributes:
        tflops: what the GPU sustains, in TFLOP/s; 2 FLOP to a multiply-accumulate.
        stages: scoring, finetuning, evaluation, and the total.
    """

    tflops: float
    stages: dict[str, Stage]


def estimate_recipe(recipe: Recipe, pipeline: DiffusionPipeline, *, tflops: float = TFLOPS) -> RecipeEstimate:
    """Counts the denoiser calls of a recipe, and the hours that they take; nothing is sampled.

    What is pruned is taken to cost what the budget keeps of the MACs or the latency. The pipeline needs no weights.

    Raises:
        DenoiserNotFound: the pipeline cannot be run.
    """
    probe = recipe.probe.replace(call=opened_images(recipe.probe.call))
    denoising = count_denoising(pipeline, probe, **recipe.model_dump(include=set(OPERATORS)))
    kept = next((fraction for fraction in (recipe.budget.macs, recipe.budget.latency) if fraction is not None), 1.0)
    examples = recipe.examples if recipe.data is None else 0
    stages = {
        "scoring": scoring_stage(denoising, probe, None if recipe.exhaustive else 1, tflops),
        "finetuning": finetuning_stage(denoising, probe, recipe.training, examples=examples, kept=kept, tflops=tflops),
        "evaluation": evaluation_stage(denoising, probe, recipe.evaluation.samples, kept=kept, tflops=tflops),
    }
    stages["total"] = stages["scoring"] + stages["finetuning"] + stages["evaluation"]
    return RecipeEstimate(**dict(denoising), tflops=tflops, stages=stages)


def carry_out(
    recipe: Recipe, stages: Collection[StageName] = STAGES, *, progress: Progress = unreported
) -> Iterator[tuple[StageName, Outcome | History | Evaluation | None]]:
    """Does the stages of a recipe, and yields the result of each; the same call again resumes.

    A pruning that was done before yields None: a latency measured again could give another plan, and a training that
    has begun would be lost. So does finetuning in all processes of a launcher but the first.

    Raises:
        EvaluationError: a scorer cannot be imported.
        RecipeError: a file is missing, or the run folder holds what another recipe pruned.
    """
    for field, path in recipe.missing.items():  # before the first hour, not after the hundredth
        raise RecipeError(
            f"{field}={str(path)!r}: no such file or folder; put it there (relative to the working directory)"
        )
    if "evaluate" in stages:
        find_scorers(recipe.evaluation.scorers)
    place: dict[str, Any] = {"device": recipe.device, "dtype": recipe.dtype, "progress": progress}
    if "prune" in stages:
        yield "prune", None if recipe.was_pruned() else _prune(recipe, progress)
    if "finetune" in stages:
        probe = recipe.resolved_probe(recipe.examples)
        place_and_goal: dict[str, Any] = {**place, "data": recipe.data, "until": recipe.until}
        yield "finetune", finetune_run(recipe.run, recipe.training, probe=probe, **place_and_goal)
    if "evaluate" in stages:
        settings = recipe.evaluation
        options = settings.model_dump(exclude={"samples", "prompts"})
        probe = recipe.resolved_probe(settings.samples, settings.prompts)
        yield "evaluate", evaluate_run(recipe.run, probe=probe, **options, **place)


def _prune(recipe: Recipe, progress: Progress) -> Outcome:
    names = ("model", "batch_size", "exhaustive", *CHOICES)
    with locked(recipe.run):
        outcome = run(
            open_pipeline(recipe.model, recipe.device, recipe.dtype),
            recipe.budget,
            run=recipe.run,
            probe=recipe.resolved_probe(),
            progress=progress,
            **{name: getattr(recipe, name) for name in names},
        )
        recipe.mark_pruned()
    return outcome


def opened_images(call: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a pipeline's call, where images are paths, with these images opened.

    Raises:
        ProbeError: an image cannot be read.
    """
    return {name: _opened(name, value) if "image" in name else value for name, value in call.items()}


def _opened(name: str, value: Any) -> Any:
    """The images of one path or of several; what is no text stays as it is."""
    if isinstance(value, (list, tuple)):
        return [_opened(name, item) for item in value]
    if not isinstance(value, str):
        return value
    try:
        return read_picture(Path(value))
    except DataError as error:
        raise ProbeError(f"{name}={value!r}: {error}; give the path of an image") from error


def read_recipe(path: Path | str) -> Recipe:
    """Reads a recipe from a YAML file; its paths are relative to the working directory.

    Raises:
        RecipeError: it cannot be read, or a field is unknown or wrong.
    """
    fields = read_yaml(path)
    try:
        return Recipe.model_validate(fields)
    except LdPrunerError as error:
        raise RecipeError(f"{path}: {error}") from error


def read_yaml(path: Path | str) -> dict[str, Any]:
    """The fields of a YAML file, plain values only, no field twice.

    Raises:
        RecipeError: the file cannot be read, or holds anything else.
    """
    try:
        document = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read {str(path)!r}: {one_line(error)}; give a YAML file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: not YAML: {one_line(error)}; correct it there") from error
    if not isinstance(document, dict):
        raise RecipeError(f"{path}: holds {type(document).__name__}, no fields; write each as 'name: value'")
    problem = _fault(document, 0)
    if problem:
        raise RecipeError(f"{path}: {problem}")
    return document


class _Loader(yaml.SafeLoader):
    """Refuses fields given twice, of which YAML takes the last, and aliases: ten of them make billions."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError(f"*{self.peek_event().anchor} repeats another value; write it again")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(name, deep=True) for name, _ in node.value]
        twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
        if twice is not None:
            raise yaml.YAMLError(f"field {twice!r} is given twice, in line {node.start_mark.line + 1} and below")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def _fault(value: Any, depth: int, field: str = "") -> str | None:
    """What is wrong with a value of a YAML file, None if nothing is."""
    if depth > MAX_DEPTH:
        return f"fields within fields, more than {MAX_DEPTH} deep; correct it there"
    if isinstance(value, dict):
        wrong = next((name for name in value if not isinstance(name, str)), None)
        inner = (_fault(item, depth + 1, f"{field}.{name}" if field else name) for name, item in value.items())
        return f"the field {wrong!r} is not named by a text" if wrong is not None else next(filter(None, inner), None)
    if isinstance(value, list):
        return next(filter(None, (_fault(item, depth + 1, field) for item in value)), None)
    if value is not None and not isinstance(value, (str, bool, int, float)):
        return f"{field}={shown(value)} is a {type(value).__name__}; give a number, a text, true, false or null"
    is_small = not isinstance(value, (int, float)) or abs(value) < MAX_NUMBER
    return None if is_small else f"{field}: a number is too large, or is none; correct it there"
