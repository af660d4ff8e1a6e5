"""Shows settings on the API page as they are written: a signature with the default of each field."""

from typing import Any

import griffe


class SettingsSignatures(griffe.Extension):
    """Gives each class of settings the constructor that pydantic makes from its fields."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Griffe reads source code alone, in which there is no such constructor."""
        if [str(base) for base in cls.bases] != ["Settings"]:
            return
        fields = [field for field in cls.attributes.values() if field.annotation and "property" not in field.labels]
        parameters = griffe.Parameters(griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword))
        for field in fields:
            field.annotation = _plain(field.annotation)
            parameters.add(
                griffe.Parameter(
                    field.name,
                    annotation=field.annotation,
                    default=_default(field.value),
                    kind=griffe.ParameterKind.keyword_only,
                )
            )
        cls.set_member("__init__", griffe.Function("__init__", parameters=parameters))


def _plain(annotation: Any) -> Any:
    """A type without what pydantic checks: `Annotated[int, ...]` is `int`."""
    if isinstance(annotation, griffe.ExprSubscript) and str(annotation.left) == "Annotated":
        inner = annotation.slice
        return inner.elements[0] if isinstance(inner, griffe.ExprTuple) else inner
    return annotation


def _default(value: Any) -> Any:
    """The default of a field: its value, or the argument of `Field`."""
    if isinstance(value, griffe.ExprCall) and str(value.function) == "Field":
        arguments = {item.name: item.value for item in value.arguments if isinstance(item, griffe.ExprKeyword)}
        return arguments.get("default") or f"{arguments['default_factory']}()"
    return value
