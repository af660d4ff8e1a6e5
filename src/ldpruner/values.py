"""Values: what is known is frozen, checked when made, JSON in and out."""

from pydantic import BaseModel, ConfigDict, ValidationError


class Value(BaseModel):
    """The base of every value."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


def first_fault(error: ValidationError) -> str:
    """The field, the value seen, and what is wrong with it."""
    fault = error.errors()[0]
    return f"{'.'.join(map(str, fault['loc']))}={fault['input']!r}: {fault['msg']}"
