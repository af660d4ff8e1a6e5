"""Errors. Each message is one line: what is wrong, the value seen, what to do."""

from collections.abc import Iterable
from difflib import get_close_matches

# What an error says that is not of a type of its own: of the CPU, the system, oneDNN, MPS, cuBLAS and cuDNN.
OUT_OF_MEMORY = (
    *("DefaultCPUAllocator", "annot allocate memory", "bad_alloc", "could not create a primitive"),
    *("out of memory", "ALLOC_FAILED"),
)


class LdPrunerError(Exception):
    """The parent of all errors that a user can fix. The command line prints it as one line."""


class PipelineNotFound(LdPrunerError):
    """No pipeline at the given place."""


class UnsafeFile(LdPrunerError):
    """A file is not what its name says, or would have to be unpickled."""


class DenoiserNotFound(LdPrunerError):
    """The pipeline could not be run, or its denoising loop calls no network."""


class WeightsNeeded(DenoiserNotFound):
    """The pipeline or its denoiser cannot be watched on the meta device."""


class OperatorNotFound(LdPrunerError):
    """The denoiser has no operator of this name."""

    def __init__(self, name: str, names: Iterable[str]) -> None:
        nearest = get_close_matches(name, list(names), n=3, cutoff=0.5)
        hint = f"nearest: {', '.join(nearest)}" if nearest else "list them with 'ldpruner operators'"
        super().__init__(f"no operator {name!r}; {hint}")


class NothingToRemove(LdPrunerError):
    """Patterns or lists leave no operator that could be removed."""


class PlanMismatch(LdPrunerError):
    """The plan was made for another architecture."""


class LoraMismatch(LdPrunerError):
    """A LoRA cannot be read, or does not fit the pruned network."""


class BudgetError(LdPrunerError):
    """A budget is out of range or cannot be reached.

    Attributes:
        least: the smallest latency ratio that can be reached, if the budget asks for less.
    """

    def __init__(self, problem: str, *, least: float | None = None) -> None:
        super().__init__(problem)
        self.least = least


class DeviceError(LdPrunerError):
    """A device or a precision does not exist here."""


class ProbeError(LdPrunerError):
    """The settings of a probe do not fit the pipeline."""


class PipelineFailed(LdPrunerError):
    """A pipeline raises when it is called. The cause is its own error."""


class NonFiniteLatents(LdPrunerError):
    """The original pipeline itself gives latents that are not finite."""


class ExecutionError(LdPrunerError):
    """No worker can be started, or workers die again and again."""


class FinetuningError(LdPrunerError):
    """The pipeline, the data or the settings do not fit finetuning."""


class ExportError(LdPrunerError):
    """A network cannot be exported, differs once it is, or is called in another way than it was exported for."""


class EvaluationError(LdPrunerError):
    """An evaluation lacks something, or its settings do not fit the pipeline."""


class DataError(LdPrunerError):
    """Pictures or sounds are missing or damaged."""


class RunStoreError(LdPrunerError):
    """The store of a run folder is damaged, or belongs to another model or probe."""


class RunFolderBusy(LdPrunerError):
    """Another process is writing into the run folder."""


class ServingError(LdPrunerError):
    """The live comparison cannot be served."""


class PublishingError(LdPrunerError):
    """The Hub refuses a pipeline, or cannot be reached."""


class StorageError(LdPrunerError):
    """A file could not be written: the disk is full or read-only, or a permission is missing."""


def accepted_names(name: str, accepted: Iterable[str]) -> str:
    """The end of an error about an unknown name: the nearest accepted one, and all of them."""
    names = list(accepted)
    nearest = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"{hint}accepted: {', '.join(names) or 'none'}"


def shown(value: object, limit: int = 100) -> str:
    """A value as an error shows it, shortened."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list in itself
        text = f"a {type(value).__name__} that is too large to print"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def one_line(error: BaseException, limit: int = 200) -> str:
    """The error of another library in one line, with its type."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error or its cause says that memory ran out; torch has a type for it on some devices only."""
    has_type = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    is_signed = any(sign in str(error) for sign in OUT_OF_MEMORY)
    return has_type or is_signed or (error.__cause__ is not None and is_out_of_memory(error.__cause__))
