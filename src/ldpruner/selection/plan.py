"""Plans: what to remove from a denoiser, and where the choice came from."""

from pathlib import Path
from typing import Literal, TypeAlias, get_args

from pydantic import Field

from ldpruner.budget import Budget, Predicted
from ldpruner.errors import PlanMismatch, one_line
from ldpruner.files import write_atomic
from ldpruner.operators.discovery import Removal
from ldpruner.pipelines.fingerprints import Architecture
from ldpruner.profiling.machine import Machine
from ldpruner.values import Value

Rule: TypeAlias = Literal["knapsack", "greedy", "random"]
PLAN_FILE = "plan.json"  # in a run folder
RULES: tuple[Rule, ...] = get_args(Rule)


class PlannedRemoval(Value):
    """A removal in a plan, and why it was chosen.

    Attributes:
        removal: what is removed, and what stands in for it.
        score: for which it was chosen.
        parameters: how many weights it takes away; where it would be another number, the plan does not apply. None if
            it is not known.
        selection_frequency: share of the plans that hold it when the scores are redrawn within their errors;
            well below 1, another removal would do as well.
    """

    removal: Removal
    score: float = 0.0
    parameters: int | None = None
    selection_frequency: float | None = None

    @property
    def operator(self) -> str:
        """The dotted name of the operator."""
        return self.removal.operator

    @property
    def modification(self) -> str:
        """What stands in for the operator."""
        return self.removal.modification


class Plan(Value):
    """What to remove from a denoiser, and where the choice came from.

    Attributes:
        removed: the removals, in the order in which the operators run.
        component: the denoiser's name in the pipeline; None for the one that the pipeline calls.
        architecture: of the denoiser that it was made for; others that have the same operators can be pruned too. None
            applies wherever operators of these names exist.
        budget: for which it was selected.
        rule: by which it was selected.
        predicted: what is left.
        machine: where the latencies were measured that it was selected by.
        provenance: of the scores: probe, metric, whether all were sampled on all samples, denoiser calls, and how much
            alike other seeds would rank; and whether what is left was measured, where it is a latency.
    """

    removed: tuple[PlannedRemoval, ...]
    component: str | None = None
    architecture: Architecture | None = None
    budget: Budget | None = None
    rule: Rule | None = None
    predicted: Predicted | None = None
    machine: Machine | None = None
    provenance: dict[str, object] = Field(default_factory=dict)

    def write(self, path: Path | str) -> None:
        """Writes the plan as readable JSON, whole or not at all.

        Raises:
            StorageError: it cannot be written.
        """
        write_atomic(path, self.model_dump_json(indent=2, exclude_none=True) + "\n")

    @classmethod
    def read(cls, path: Path | str) -> "Plan":
        """Reads a plan that `write` wrote: a file, or the `plan.json` of a folder."""
        file = Path(path, PLAN_FILE) if Path(path).is_dir() else Path(path)
        try:
            return cls.model_validate_json(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise PlanMismatch(f"no plan at {file}: {error.strerror}; make one with 'ldpruner select'") from error
        except ValueError as error:
            raise PlanMismatch(f"{file} is not a plan: {one_line(error)}") from error
