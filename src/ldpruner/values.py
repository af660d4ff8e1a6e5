"""Values: what is known is frozen, checked when made, JSON in and out."""

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """The base of every value."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")
