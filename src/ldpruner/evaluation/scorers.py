"""Metrics of the user's own: functions that give each sample a score."""

import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch

from ldpruner.errors import EvaluationError, accepted_names, one_line, shown
from ldpruner.evaluation.samples import SampleBatch
from ldpruner.scoring.importance import Floats

Score: TypeAlias = Callable[[list[Any], list[str] | None], Any]


@dataclass(frozen=True)
class Scorer:
    """A function of a user, and its name in an evaluation.

    Attributes:
        name: `module:function`.
        function: takes the decoded samples of a batch (see `SampleBatch.samples`) and their prompts, or None for
            pipelines without; returns a number for each sample. Its attribute `lower_is_better` says so if it is.
    """

    name: str
    function: Score

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher score is a better one."""
        return not getattr(self.function, "lower_is_better", False)

    def __call__(self, batch: SampleBatch) -> Floats:
        """The score of each sample: [samples].

        Raises:
            EvaluationError: the function raises, or does not return a finite number for each sample.
        """
        samples = batch.samples
        if not samples:
            raise EvaluationError(f"scorer {self.name}: the pipeline makes neither pictures nor sounds; leave it out")
        try:
            with torch.no_grad():
                result = self.function(samples, list(batch.prompts) or None)
        except (Exception, SystemExit) as error:
            problem = f"scorer {self.name} raises {one_line(error)}"
            raise EvaluationError(f"{problem}; correct it: --verbose shows where") from error
        return self._checked(result, len(samples))

    def _checked(self, result: Any, count: int) -> Floats:
        try:
            scores = np.atleast_1d(_as_array(result))
        except (TypeError, ValueError) as error:
            problem = f"scorer {self.name} returns {shown(result)}"
            raise EvaluationError(f"{problem}; return a number for each of the {count} samples") from error
        if scores.shape not in ((count,), (count, 1)):
            problem = f"scorer {self.name} returns numbers of shape {list(scores.shape)} for {count} samples"
            raise EvaluationError(f"{problem}; return one for each")
        scores = scores.reshape(count)
        if not np.isfinite(scores).all():
            place = int(np.argmin(np.isfinite(scores)))
            problem = f"scorer {self.name} returns {scores[place]} for a sample (number {place} of the batch)"
            raise EvaluationError(f"{problem}; return a finite number")
        return scores


def _as_array(result: Any) -> Floats:
    """Numbers in a tensor on any device, an array, or a list of either."""
    if isinstance(result, torch.Tensor):
        return np.asarray(result.detach().double().cpu().numpy())
    if isinstance(result, (list, tuple)):
        return np.stack([_as_array(item) for item in result]) if result else np.zeros(0)
    if result is None:  # NumPy takes it for nan
        raise TypeError("None is no number")
    return np.asarray(result, dtype=np.float64)


def find_scorers(scorers: Sequence[Score | str]) -> tuple[Scorer, ...]:
    """Opens scorers: functions, or their names as `module:function`, where the module is imported.

    Raises:
        EvaluationError: there is no such module or function, two have the same name, or a function does not take
            samples and prompts.
    """
    if isinstance(scorers, str) or callable(scorers):
        raise EvaluationError(f"scorers={shown(scorers)}: give a list of them")
    opened = tuple(_open(scorer) if isinstance(scorer, str) else Scorer(_name(scorer), scorer) for scorer in scorers)
    for place, scorer in enumerate(opened):
        if scorer.name in (other.name for other in opened[:place]):
            raise EvaluationError(f"scorer {scorer.name} is given twice; give functions of different names")
        _check(scorer)
    return opened


def _name(function: Any) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def _open(text: str) -> Scorer:
    module_name, _, name = text.partition(":")
    if not module_name or not name:
        raise EvaluationError(f"scorer {text!r}: write it as module:function, such as my_metric:score")
    module = _imported(module_name, text)
    try:
        function: Any = functools.reduce(getattr, name.split("."), module)
    except AttributeError as error:
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        problem = f"scorer {text!r}: {module_name} has no {name!r}"
        raise EvaluationError(f"{problem}; {accepted_names(name, functions)}") from error
    return Scorer(text, function)


def _imported(name: str, text: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever a module does when it is imported
        hint = "correct it: --verbose shows where"
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            hint = f"write {name.replace('.', '/')}.py in the current folder, or install its package"
        raise EvaluationError(f"scorer {text!r} cannot be imported: {one_line(error)}; {hint}") from error


def _check(scorer: Scorer) -> None:
    """Raises EvaluationError unless samples and prompts can be passed."""
    if not callable(scorer.function):
        raise EvaluationError(f"scorer {scorer.name} is {shown(scorer.function)} and no function; name one")
    try:
        signature = inspect.signature(scorer.function)
    except (TypeError, ValueError):  # of a function that is not written in Python
        return
    try:
        signature.bind([], None)
    except TypeError as error:
        problem = f"scorer {scorer.name} takes {signature}"
        raise EvaluationError(f"{problem}; let it take (samples, prompts)") from error
