"""Every error that ld-pruner raises on purpose. Each message is one line: what, the value, what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class LdPrunerError(Exception):
    """Something that the user can mend; the command line prints it as one line."""


class PipelineNotFound(LdPrunerError):
    """No pipeline at the given place."""


class UnsafeFile(LdPrunerError):
    """A file is not what its name promises, or would have to be unpickled."""


class DenoiserNotFound(LdPrunerError):
    """The pipeline has no network that its denoising loop calls, or could not be run."""


class OperatorNotFound(LdPrunerError):
    """An operator's name is not one of the denoiser's."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        nearest = get_close_matches(name, list(known), n=3, cutoff=0.5)
        hint = f"nearest: {', '.join(nearest)}" if nearest else "list them with 'ldpruner operators'"
        super().__init__(f"no operator {name!r}; {hint}")


class PlanMismatch(LdPrunerError):
    """A plan was made for another architecture."""


class BudgetError(LdPrunerError):
    """A budget is out of range, or cannot be reached.

    Attributes:
        least: the kept latency that is predicted where all that can be removed is, if that is too much.
    """

    def __init__(self, problem: str, *, least: float | None = None) -> None:
        super().__init__(problem)
        self.least = least


class ProbeError(LdPrunerError):
    """A probe's settings do not fit the pipeline."""


class NonFiniteLatents(LdPrunerError):
    """The untouched pipeline itself produced latents that are not finite."""


class ExecutionError(LdPrunerError):
    """There are no workers, or they are lost again and again."""


class FinetuningError(LdPrunerError):
    """A pipeline, its data or the settings do not fit finetuning."""


class EvaluationError(LdPrunerError):
    """Something that an evaluation needs is missing, or does not fit the pipeline."""


class DataError(LdPrunerError):
    """Pictures or sounds are missing or broken."""


class RunStoreError(LdPrunerError):
    """A run folder's ledger is corrupt, or belongs to another model or probe."""


class StorageError(LdPrunerError):
    """A file could not be written: a full or read-only disk, a missing permission."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """An error of another library in one line, with its type."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
