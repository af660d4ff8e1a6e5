"""Frozen, validated values with JSON in and out."""

from collections.abc import Collection
from typing import Any, ClassVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from ldpruner.errors import LdPrunerError, accepted_names, shown

MAX_COUNT = 10**12  # of samples, steps and the like


class Value(BaseModel):
    """The parent of every value: frozen, checked when it is made, without fields that it does not know.

    Attributes:
        noun: how error messages name the value; the name of its class if empty.
        error: what a wrong field raises in place of pydantic's own error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    noun: ClassVar[str] = ""
    error: ClassVar[type[LdPrunerError] | None] = None

    @model_validator(mode="wrap")
    @classmethod
    def _translate_errors(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            if cls.error is None:
                raise
            raise cls.error(f"{cls.noun or cls.__name__} {first_fault(error, cls)}") from error

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed. It is checked like a new value, which `model_copy` does not do."""
        return type(self)(**{**dict(self), **changes})


class Settings(Value):
    """The parent of what a user sets: no infinity, no NaN, no true or false for a number."""

    model_config = ConfigDict(allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans_as_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        values = value if isinstance(value, (list, tuple)) else (value,)
        if any(isinstance(item, bool) for item in values):
            types = _types(cls.model_fields[str(info.field_name)].annotation)
            if types & {int, float} and bool not in types:
                raise ValueError("Input should be a number, not true or false")
        return value


def _types(annotation: Any) -> set[Any]:
    """All types in an annotation, such as those of a union."""
    parts = get_args(annotation)
    return {annotation} if not parts else {kind for part in parts for kind in _types(part)}


def check_choice(noun: str, value: Any, accepted: Collection[str], error: type[LdPrunerError]) -> None:
    """Raises an error if a value is none of the accepted names."""
    if not isinstance(value, str) or value not in accepted:
        raise error(f"{noun} {shown(value)} does not exist; {accepted_names(str(value), accepted)}")


def check_count(noun: str, value: Any, error: type[LdPrunerError]) -> None:
    """Raises an error if a value is no whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_COUNT:
        raise error(f"{noun}={shown(value)}; give a whole number above 0")


def first_fault(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """The first wrong field in one line: its name, the value seen, and what is accepted."""
    fault = error.errors()[0]
    # pydantic also puts the names of its validators there, such as `function-wrap[...]`
    field = ".".join(part for part in map(str, fault["loc"]) if part.isidentifier() or part.isdigit())
    value = shown(fault["input"])
    if fault["type"] == "missing":
        return f"lacks {field!r}; add it"
    if fault["type"] == "extra_forbidden" and model is not None:
        name = str(fault["loc"][-1])
        return f"has no {shown(name)} (={value}); {accepted_names(name, model.model_fields)}"
    return f"{field}={value}: {fault['msg'].removeprefix('Value error, ')}"
