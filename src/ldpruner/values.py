"""Frozen, validated values with JSON in and out."""

from difflib import get_close_matches
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from typing_extensions import Self

from ldpruner.errors import LdPrunerError


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


def first_fault(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """The first wrong field in one line: its name, the value seen, and what is accepted."""
    fault = error.errors()[0]
    # pydantic also puts the names of its validators there, such as `function-wrap[...]`
    field = ".".join(part for part in map(str, fault["loc"]) if part.isidentifier() or part.isdigit())
    if fault["type"] == "missing":
        return f"lacks {field!r}; add it"
    if fault["type"] == "extra_forbidden" and model is not None:
        name = str(fault["loc"][-1])
        nearest = get_close_matches(name, model.model_fields, n=3)
        return f"has no {field!r} (={fault['input']!r}); use one of {', '.join(nearest or model.model_fields)}"
    return f"{field}={fault['input']!r}: {fault['msg'].removeprefix('Value error, ')}"
