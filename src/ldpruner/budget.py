"""Budgets: how much of a pipeline's costs may be left."""

from typing import Literal, TypeAlias, get_args

from pydantic import Field, model_validator

from ldpruner.errors import BudgetError
from ldpruner.values import MAX_COUNT, Settings, Value

Quantity: TypeAlias = Literal["latency", "parameters", "macs", "memory"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)


class Budget(Settings):
    """How much of each quantity may be left, as a fraction of the original: above 0 and at most 1.

    Attributes:
        latency: time of one call of the pipeline on one sample.
        parameters: parameters of the denoiser.
        macs: multiply-accumulates of one denoiser call.
        memory: peak memory of such a call; only the weights count as savings.
        operators: how many operators to remove, as in the paper.
    """

    noun = "budget"
    error = BudgetError

    latency: float | None = Field(default=None, strict=True)
    parameters: float | None = Field(default=None, strict=True)
    macs: float | None = Field(default=None, strict=True)
    memory: float | None = Field(default=None, strict=True)
    operators: int | None = Field(default=None, strict=True, le=MAX_COUNT)

    @model_validator(mode="after")
    def _check(self) -> "Budget":
        for name, kept in self.kept.items():
            if not 0 < kept <= 1:
                raise BudgetError(
                    f"budget {name}={kept:g} is outside (0, 1]; it is the fraction to keep, such as {name}=0.65"
                )
        if self.operators is not None and self.operators < 1:
            raise BudgetError(f"budget operators={self.operators} is below 1; it is how many to remove")
        if not self.kept and self.operators is None:
            raise BudgetError(f"an empty budget; give one of {', '.join(QUANTITIES)}, operators")
        return self

    @property
    def kept(self) -> dict[Quantity, float]:
        """The fractions of the budget."""
        fractions = {name: getattr(self, name) for name in QUANTITIES}
        return {name: float(kept) for name, kept in fractions.items() if kept is not None}

    def __str__(self) -> str:
        return " ".join(f"{name}={value:g}" for name, value in self.model_dump(exclude_none=True).items())


class Predicted(Value):
    """How much a plan leaves of the original, as fractions."""

    latency: float
    parameters: float
    macs: float
    memory: float
