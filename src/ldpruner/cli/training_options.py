"""One option for each setting of `Training`: its type, default and help are those of the field."""

import inspect
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from ldpruner.cli.options import TRAINING
from ldpruner.cli.parsing import literal
from ldpruner.finetuning.settings import Training

CONFIG = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="A YAML or JSON file of these settings; options on the command line come first.",
        show_default=False,
        rich_help_panel=TRAINING,
    ),
]


def with_training_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Replaces a command's parameter `training` by an option for each of its fields, and `--config`."""
    signature = inspect.signature(function)
    annotations = {**_options(), "config": CONFIG}

    def wrapped(**options: Any) -> Any:
        chosen = {name: options.pop(name) for name in annotations}
        return function(training=_training(chosen), **options)

    kept = [parameter for name, parameter in signature.parameters.items() if name != "training"]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in annotations.items()
    ]
    wrapped.__name__, wrapped.__doc__, wrapped.__module__ = function.__name__, function.__doc__, function.__module__
    own = {name: value for name, value in function.__annotations__.items() if name != "training"}
    wrapped.__annotations__ = {**own, **annotations}
    setattr(wrapped, "__signature__", signature.replace(parameters=[*kept, *added]))  # noqa: B010
    return wrapped


def _training(chosen: dict[str, Any]) -> Training:
    """The settings of a file, and over them those of the command line."""
    config = chosen.pop("config")
    settings: dict[str, Any] = {}
    if config is not None:
        from ldpruner.recipes import read_yaml

        settings = read_yaml(config)
    return Training(**{**settings, **{name: _read(value) for name, value in chosen.items() if value is not None}})


def _read(value: Any) -> Any:
    """A text option's value: `none` is None, a number is a number."""
    if not isinstance(value, str):
        return value
    return None if value.lower() == "none" else literal(value)


def _options() -> dict[str, Any]:
    help_of = _help_texts()
    return {name: _option(name, field, help_of.get(name, "")) for name, field in Training.model_fields.items()}


def _option(name: str, field: FieldInfo, text: str) -> Any:
    """The annotation of an option; what is not given stays None, so that a file's setting counts."""
    flag = f"--{name.replace('_', '-')}"
    kind, metavar = _kind(field.annotation)
    default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else str(field.default)
    names = (f"{flag}/--no-{flag[2:]}",) if kind is bool else (flag,)
    option = typer.Option(
        *names,
        help=f"{text} Default: {default.lower() if kind is bool or field.default is None else default}.".strip(),
        metavar=metavar,
        show_default=False,
        rich_help_panel=TRAINING,
    )
    return Annotated[kind | None, option]


def _kind(annotation: Any) -> tuple[Any, str | None]:
    """The type of an option for a field, and how --help names its values."""
    if get_origin(annotation) is Literal:
        return str, "|".join(get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        inner = next(part for part in get_args(annotation) if part is not type(None))
        return str, f"{'INTEGER' if inner is int else 'FLOAT'}|none"
    if get_origin(annotation) is tuple:
        return tuple[float, float], None
    return annotation, None


def _help_texts() -> dict[str, str]:
    """What the docstring of Training says of each field: of the form `name, name: text`."""
    attributes = inspect.cleandoc(Training.__doc__ or "").partition("Attributes:\n")[2]
    texts: dict[str, str] = {}
    for names, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8,}.*)*)", attributes, re.MULTILINE):
        sentence = " ".join(text.split())
        sentence = sentence[0].upper() + sentence[1:]
        texts.update(dict.fromkeys(re.split(r",\s*", names), sentence))
    return texts
